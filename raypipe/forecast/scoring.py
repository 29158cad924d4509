"""Forecasts of fixed windows, and their scores, by which trials and combinations are ranked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from raypipe.common.device import autocast, choose_device
from raypipe.config import Evaluation, Solver
from raypipe.forecast.windows import Forecasts
from raypipe.metrics import ensemble
from raypipe.metrics.ensemble import Score
from raypipe.sde.compiled import compiled_evaluate
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.path import stack, velocity
from raypipe.sde.rollout import rollout


@torch.no_grad()
def residual_std(flow: nn.Module, forecasts: Forecasts, sigma: float) -> Tensor:
    """Root mean square of the residual v - f(X, 0) for each channel, [C], at u = 0 and without added noise.

    See `raypipe.sde` for v and f. All predicted frames of the windows are used. sigma: `sde.sigma` of the config.
    """
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
    dynamics: Dynamics | Sequence[Dynamics],
    forecasts: Forecasts,
    evaluation: Evaluation,
    steps: int,
    members: int | None = None,
    solver: Solver | None = None,
) -> Tensor:
    """Ensemble forecast of every window, [n, M, H, C, h, w].

    dynamics: the SDE, or several of them that take turns, see `rollout`. steps: integration steps per frame. members: M
    (None: evaluation.members). solver: None: the first of evaluation.solvers. The noise only depends on
    evaluation.seed, the index of the window, the member and the frame.
    """
    device = choose_device()
    turns = [dynamics] if isinstance(dynamics, Dynamics) else dynamics
    if evaluation.compile:
        turns = [replace(one, evaluate=compiled_evaluate()) for one in turns]
    with autocast(device):
        return rollout(
            turns,
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
    dynamics: Dynamics | Sequence[Dynamics],
    forecasts: Forecasts,
    evaluation: Evaluation,
    steps: int,
    members: int | None = None,
    solver: Solver | None = None,
) -> Score:
    """The score, in latent space, of the forecasts that `forecast` makes with these arguments."""
    made = forecast(dynamics, forecasts, evaluation, steps, members, solver)
    return ensemble.score(made, forecasts.truth, forecasts.last)


@dataclass(frozen=True)
class Fitted:
    """The best candidate for a magnitude, and its crps_ratio on the windows on which it was chosen."""

    value: float
    ratio: float


def fit_magnitude(
    make: Callable[[float], Dynamics | Sequence[Dynamics]],
    candidates: Sequence[float],
    forecasts: Forecasts,
    evaluation: Evaluation,
    steps: int,
    solver: Solver | None = None,
) -> Fitted:
    """Choose the magnitude (multiplier or beta) with the best score on training windows.

    make: dynamics with a given magnitude. forecasts: training windows.
    """

    def ratio(value: float) -> float:
        return score(make(value), forecasts, evaluation, steps, solver=solver).ratio.value

    scored = [Fitted(value, ratio(value)) for value in candidates]
    return min(scored, key=lambda fitted: fitted.ratio if np.isfinite(fitted.ratio) else np.inf)
