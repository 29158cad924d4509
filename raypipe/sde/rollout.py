"""Forecasts: the SDE integrated frame after frame, the window of known frames sliding along."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raypipe.sde.brownian import brownian
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.solvers import euler_maruyama


@torch.no_grad()
def rollout(
    dynamics: Dynamics,
    context: Tensor,
    horizon: int,
    *,
    steps: int,
    members: int,
    seed: int,
    windows: Sequence[int] | None = None,
    interpolate: int = 1,
    batch_size: int = 512,
    device: torch.device | None = None,
) -> Tensor:
    """Forecasts of `horizon` frames after each context of K latents, [n, K, C, h, w].

    One frame interval is integrated in `steps` Euler-Maruyama steps; its last frame joins the window. With
    interpolate = k every interval also yields the frames at 1/k, ..., (k-1)/k of it, before its whole one.
    `windows` are the numbers that the noise of each context is drawn by (their positions, if left out), and
    at most `batch_size` forecasts are integrated at once, on `device`. Neither changes the result of any other.

    Returns [n, members, horizon * interpolate, C, h, w] on the CPU. Members of a deterministic forecast are equal.
    """
    assert context.ndim == 5 and horizon >= 1 and interpolate >= 1
    numbers = list(range(len(context))) if windows is None else [int(w) for w in windows]
    drawn = members if dynamics.stochastic else 1
    at_once = max(1, batch_size // drawn)
    parts = [
        _rollout(
            dynamics,
            context[i : i + at_once].to(device),
            numbers[i : i + at_once],
            horizon,
            steps,
            drawn,
            seed,
            interpolate,
        )
        for i in range(0, len(context), at_once)
    ]
    return torch.cat(parts).expand(-1, members, -1, -1, -1, -1)


def _rollout(
    dynamics: Dynamics,
    context: Tensor,
    windows: list[int],
    horizon: int,
    steps: int,
    members: int,
    seed: int,
    interpolate: int,
) -> Tensor:
    frames = list(context.repeat_interleave(members, dim=0).unbind(1))
    shape = frames[0].shape[1:]
    readouts = [j / interpolate for j in range(1, interpolate)]
    out: list[Tensor] = []
    for number in range(horizon):
        state = torch.cat(frames, dim=1)
        interval = dynamics.interval(state)
        noise, driver = None, None
        if dynamics.stochastic:
            noise, cpu = interval.noise, brownian(seed, windows, members, number, steps, len(readouts), shape)
            driver = cpu.to(state.device)
        solution = euler_maruyama(interval.drift, noise, state, driver, steps=steps, readouts=readouts)
        out += [x[:, -shape[0] :].cpu() for x in (*solution.between, solution.end)]
        frames = [*frames[1:], solution.end[:, -shape[0] :]]
    rolled = torch.stack(out, dim=1)
    return rolled.view(len(context), members, *rolled.shape[1:])
