"""Forecasts of fixed windows of clips, and their scores: what trials and combinations are ranked on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raypipe.common.device import autocast, choose_device
from raypipe.config import Evaluation, Experiment, Solver
from raypipe.data.shards import Shards
from raypipe.data.windows import WindowIndex
from raypipe.metrics import ensemble
from raypipe.metrics.ensemble import Score
from raypipe.sde.compiled import compiled_evaluate
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.path import stack, velocity
from raypipe.sde.rollout import rollout


@dataclass(frozen=True)
class Forecasts:
    """Windows to forecast: context [n, K, C, h, w], truth [n, H, C, h, w], and where they lie (clip, first frame)."""

    context: Tensor
    truth: Tensor
    clips: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def last(self) -> Tensor:
        """The last known frame [n, C, h, w]: persistence repeats it."""
        return self.context[:, -1]


def choose_windows(lengths: npt.ArrayLike, span: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """`count` windows of `span` frames: as many clips as there are, each start drawn from the seed.

    Windows of one clip are alike, so a clip gives a second one only when every clip has given one.
    Returns clips and first frames; fewer if there are not as many windows.
    """
    lengths = np.asarray(lengths)
    index = WindowIndex(lengths, span)
    rng = np.random.default_rng([seed, span])
    taken: list[tuple[int, int]] = []
    starts = {int(c): list(rng.permutation(max(0, int(n) - index.span + 1))) for c, n in enumerate(lengths)}
    while len(taken) < min(count, len(index)):
        for clip in rng.permutation(len(lengths)):
            if starts[int(clip)] and len(taken) < count:
                taken.append((int(clip), int(starts[int(clip)].pop())))
    taken.sort()
    return [clip for clip, _ in taken], [start for _, start in taken]


def forecast_windows(latents: Shards, experiment: Experiment, count: int, seed: int) -> Forecasts:
    """`count` fixed windows of K given and H true latents."""
    given, horizon, stride = (
        experiment.model.num_input_frames,
        experiment.evaluation.horizon,
        experiment.dataset.frame_stride,
    )
    clips, starts = choose_windows(latents.lengths, (given + horizon - 1) * stride + 1, count, seed)
    frames = np.stack([read(latents, c, s, given + horizon, stride) for c, s in zip(clips, starts, strict=True)])
    data = torch.from_numpy(frames).float()
    return Forecasts(data[:, :given], data[:, given:], tuple(clips), tuple(starts))


def read(shards: Shards, clip: int, start: int, count: int, stride: int) -> np.ndarray:
    """`count` frames of a clip, `stride` apart."""
    return np.asarray(shards.frames(clip, slice(start, start + (count - 1) * stride + 1, stride)))


@torch.no_grad()
def residual_std(flow: nn.Module, forecasts: Forecasts, sigma: float) -> Tensor:
    """The root mean square of v - f(X, 0) on each channel, [C], over windows at u = 0 and without noise."""
    given = forecasts.context.shape[1]
    frames = torch.cat([forecasts.context, forecasts.truth], 1).to(next(flow.parameters()).device)
    total = torch.zeros(frames.shape[2], dtype=torch.float64)
    steps = frames.shape[1] - given
    for t in range(steps):
        window = frames[:, t : t + given + 1]
        state = stack(window[:, :-1])
        residual = velocity(window, sigma) - flow(state, state.new_zeros(len(state)))
        total += residual.double().square().mean((0, 2, 3)).cpu()
    return (total / steps).sqrt().float()


def forecast(
    dynamics: Dynamics,
    forecasts: Forecasts,
    evaluation: Evaluation,
    steps: int,
    members: int | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """The ensemble [n, M, H, C, h, w] of every window, by evaluation's first solver unless another is given.

    Noise depends on (seed, window's place) alone.
    """
    device = choose_device()
    if evaluation.compile:
        dynamics = replace(dynamics, evaluate=compiled_evaluate())
    with autocast(device):
        return rollout(
            dynamics,
            forecasts.context,
            forecasts.truth.shape[1],
            steps=steps,
            members=members or evaluation.members,
            seed=evaluation.seed,
            solver=solver or evaluation.solvers[0],
            batch_size=evaluation.batch_size,
            device=device,
        )


def score(
    dynamics: Dynamics,
    forecasts: Forecasts,
    evaluation: Evaluation,
    steps: int,
    members: int | None = None,
    solver: Solver | None = None,
) -> Score:
    """The score in latents."""
    made = forecast(dynamics, forecasts, evaluation, steps, members, solver)
    return ensemble.score(made, forecasts.truth, forecasts.last)


@dataclass(frozen=True)
class Fitted:
    """The best of a few candidates on the windows it was fitted on."""

    value: float
    ratio: float


def fit_magnitude(
    make: Callable[[float], Dynamics],
    candidates: Sequence[float],
    forecasts: Forecasts,
    evaluation: Evaluation,
    steps: int,
    solver: Solver | None = None,
) -> Fitted:
    """The candidate (a multiplier, or beta) whose dynamics score best on the given, training, windows."""

    def ratio(value: float) -> float:
        return score(make(value), forecasts, evaluation, steps, solver=solver).ratio.value

    scored = [Fitted(value, ratio(value)) for value in candidates]
    return min(scored, key=lambda fitted: fitted.ratio if np.isfinite(fitted.ratio) else np.inf)


def climatology(latents: Shards, forecasts: Forecasts, members: int, seed: int) -> Tensor:
    """Random training frames as the ensemble of every window and step, [n, M, H, C, h, w]."""
    rng = np.random.default_rng([seed, members])
    lengths = np.asarray(latents.lengths)
    n, horizon = forecasts.truth.shape[:2]
    clips = rng.choice(len(lengths), size=(n, members), p=lengths / lengths.sum())
    frames = [[read(latents, int(c), int(rng.integers(lengths[c])), 1, 1)[0] for c in row] for row in clips]
    drawn = torch.from_numpy(np.asarray(frames)).float()
    return drawn[:, :, None].expand(-1, -1, horizon, -1, -1, -1)
