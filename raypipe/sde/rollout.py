"""Forecasts: the SDE integrated frame after frame, the window of known frames sliding along."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from raypipe.sde.batching import in_batches
from raypipe.sde.brownian import brownian, forecast_keys
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.solvers import SOLVERS, Step, solve


@torch.no_grad()
def rollout(
    dynamics: Dynamics,
    context: Tensor,
    horizon: int,
    *,
    steps: int,
    members: int,
    seed: int,
    solver: str = "euler_maruyama",
    windows: Sequence[int] | None = None,
    interpolate: int = 1,
    first_frame: int = 0,
    batch_size: int | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Forecasts of `horizon` frames after each context of K latents, [n, K, C, h, w], or [n, members, K, C, h, w].

    One frame interval is integrated in `steps` steps of the `solver`, one of SOLVERS; its last frame joins the
    window. With interpolate = k every interval also yields the frames at 1/k, ..., (k-1)/k of it, before its
    whole one: no evaluation more, the same whole frames, and of k = 4 every other is a frame of k = 2.

    The noise of a forecast depends on the seed, the window's number in `windows` (its position, if left out), the
    member and the frame's number, which begins at `first_frame`: to go on where a rollout of n frames ended, give
    each member's last K frames as its context, and n. Nor does it depend on solver and steps: these are compared on
    the same Brownian paths. At most `batch_size` forecasts are integrated at once (None: as many as pay) on
    `device`, which changes results by rounding alone.

    Returns [n, members, horizon * interpolate, C, h, w] on the CPU. Members of a deterministic forecast that
    begin alike are equal.
    """
    assert context.ndim in (5, 6) and horizon >= 1 and interpolate >= 1 and first_frame >= 0
    assert context.ndim == 5 or context.shape[1] == members
    numbers = range(len(context)) if windows is None else windows
    drawn = members if dynamics.stochastic or context.ndim == 6 else 1
    starts = context.flatten(0, 1) if context.ndim == 6 else context.repeat_interleave(drawn, dim=0)
    window = torch.tensor([int(w) for w in numbers]).repeat_interleave(drawn)
    member = torch.arange(drawn).repeat(len(context))
    place = device or context.device

    def run(rows: slice) -> Tensor:
        keys = None
        if dynamics.stochastic:
            keys = forecast_keys(seed, window[rows].to(place), member[rows].to(place))
        frames = range(first_frame, first_frame + horizon)
        return _rollout(dynamics, starts[rows].to(place), keys, frames, SOLVERS[solver].step, steps, interpolate)

    rolled = in_batches(run, len(starts), batch_size, place)
    return rolled.view(len(context), drawn, *rolled.shape[1:]).expand(-1, members, -1, -1, -1, -1)


def _rollout(
    dynamics: Dynamics,
    context: Tensor,
    keys: Tensor | None,
    frames: range,
    step: Step,
    steps: int,
    interpolate: int,
) -> Tensor:
    """One forecast a row: context [b, K, C, h, w], keys [b] or None without noise -> [b, T, C, h, w]."""
    known = list(context.unbind(1))
    shape = known[0].shape[1:]
    readouts = [Fraction(j, interpolate) for j in range(1, interpolate)]
    out: list[Tensor] = []
    for frame in frames:
        state = torch.cat(known, dim=1)
        wiener = None if keys is None else brownian(keys, frame, shape)
        solution = solve(step, dynamics.interval(state), state, wiener, steps=steps, readouts=readouts)
        out += [x[:, -shape[0] :] for x in (*solution.between, solution.end)]
        known = [*known[1:], out[-1]]
    return torch.stack(out, dim=1).cpu()
