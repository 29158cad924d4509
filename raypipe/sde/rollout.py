"""Forecasts: integrate the SDE over one frame interval after another, each time appending the predicted frame."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from einops import rearrange, repeat
from torch import Tensor

from raypipe.sde.batching import in_batches
from raypipe.sde.brownian import brownian, forecast_keys
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.solvers import SOLVERS, Step, solve


@torch.no_grad()
def rollout(
    dynamics: Dynamics | Sequence[Dynamics],
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
    """Ensemble forecasts of the `horizon` frames that follow each context of K latents.

    dynamics: the SDE, or several of them, such as trainings with different seeds, which take turns: member m is
        forecast by number m modulo their count.
    context: [n, K, C, h, w], or one context per member, [n, members, K, C, h, w].
    steps, solver: integration steps per frame interval, and a key of SOLVERS.
    members: forecasts per context. They are equal if the forecast is deterministic and their contexts are equal.
    seed, windows, first_frame: the noise of a forecast depends only on the seed, the number of its window in `windows`
        (None: its position), the member and the number of the predicted frame, counted from `first_frame`. It does not
        depend on solver and steps, which are thus compared on the same Brownian paths. To continue a rollout after its
        last frame, pass the last K frames of each member as its context, and first_frame + horizon.
    interpolate: k > 1 also returns the frames at 1/k, ..., (k-1)/k of each interval, before the frame at its end. They
        need no extra network evaluations; the frame at any time is the same for every k that includes it.
    batch_size: forecasts integrated at once (None: see `raypipe.sde.batching`). It changes results only by rounding.
    device: device to integrate on (None: that of `context`).

    Returns [n, members, horizon * interpolate, C, h, w] on the CPU.
    """
    assert context.ndim in (5, 6) and horizon >= 1 and interpolate >= 1 and first_frame >= 0
    assert context.ndim == 5 or context.shape[1] == members
    turns = [dynamics] if isinstance(dynamics, Dynamics) else list(dynamics)
    target = device or context.device
    window = torch.tensor([int(w) for w in (range(len(context)) if windows is None else windows)], device=target)
    frames = range(first_frame, first_frame + horizon)

    def forecast(one: Dynamics, numbers: range) -> Tensor:
        """The members with these numbers, [n, len(numbers), T, C, h, w]."""
        drawn = numbers if one.stochastic or context.ndim == 6 else numbers[:1]
        starts, member = _starts(context, drawn), torch.tensor(drawn, device=target).repeat(len(context))
        keys = forecast_keys(seed, window.repeat_interleave(len(drawn)), member) if one.stochastic else None

        def run(rows: slice) -> Tensor:
            mine, step = None if keys is None else keys[rows], SOLVERS[solver].step
            return integrate(one, starts[rows].to(target), mine, frames, step, steps, interpolate).cpu()

        rolled = in_batches(run, len(starts), batch_size, target)
        made = rearrange(rolled, "(n m) t c h w -> n m t c h w", m=len(drawn))
        return made.expand(-1, len(numbers), -1, -1, -1, -1)

    members_of = [range(i, members, len(turns)) for i in range(min(members, len(turns)))]
    parts = [forecast(turns[i], numbers) for i, numbers in enumerate(members_of)]
    order = torch.tensor([m for numbers in members_of for m in numbers]).argsort()
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)[:, order]


def _starts(context: Tensor, members: range) -> Tensor:
    """The contexts of these members of all windows, [n * len(members), K, C, h, w]; see `rollout` for `context`."""
    if context.ndim == 6:
        return rearrange(context[:, list(members)], "n m k c h w -> (n m) k c h w")
    return repeat(context, "n k c h w -> (n m) k c h w", m=len(members))


def integrate(
    dynamics: Dynamics,
    context: Tensor,
    keys: Tensor | None,
    frames: range,
    step: Step,
    steps: int,
    interpolate: int = 1,
) -> Tensor:
    """Forecast a batch: context [b, K, C, h, w] -> [b, len(frames) * interpolate, C, h, w]; differentiable.

    keys: keys of the noise, [b]; None: no noise.
    """
    known = list(context.unbind(1))
    shape = known[0].shape[1:]
    readouts = [Fraction(j, interpolate) for j in range(1, interpolate)]
    out: list[Tensor] = []
    for frame in frames:
        state = torch.cat(known, dim=1)
        wiener = None if keys is None else brownian(keys, frame, shape)
        noise = wiener([Fraction(1)])[0] if wiener is not None and dynamics.noise_input else None
        driving = wiener if dynamics.additive else None
        solution = solve(step, dynamics.interval(state, noise), state, driving, steps=steps, readouts=readouts)
        out += [x[:, -shape[0] :] for x in (*solution.between, solution.end)]
        known = [*known[1:], out[-1]]
    return torch.stack(out, dim=1)
