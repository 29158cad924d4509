"""Scores of forecasts as whole fields (latents or frames), over all windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypipe.metrics.calibration import RankHistogram, rank_counts
from raypipe.metrics.ensemble import energy_score
from raypipe.metrics.variogram import variogram_score

ScoreAndReference = tuple[float, float]
"""A score of one window, averaged over its predicted frames: of the forecast, of persistence."""


@dataclass(frozen=True)
class FieldScores:
    """Fair energy and variogram score over those of persistence, and the ranks of the truth among the members."""

    energy_ratio: float
    variogram_ratio: float
    ranks: RankHistogram


def beside_persistence(
    score: Callable[[Tensor, Tensor], Tensor], members: Tensor, truth: Tensor, last: Tensor
) -> ScoreAndReference:
    """A score, of members [n, M, C, h, w] and truth [n, C, h, w], of one window and of its last frame repeated.

    members: [M, H, C, h, w], or [M, 1, C, h, w] for members that are the same at all H frames; truth: [H, C, h, w];
    last: the last given frame, [C, h, w].
    """
    return score(members.transpose(0, 1), truth).mean().item(), score(last[None, None], truth).mean().item()


def ratio(scores: Sequence[ScoreAndReference]) -> float:
    """The mean score over all windows, over that of persistence."""
    forecast, persistence = np.mean(scores, 0)
    return float(forecast / persistence)


@torch.no_grad()
def score_fields(members: Sequence[Tensor], truth: Tensor, last: Tensor) -> FieldScores:
    """Score the ensembles of n windows.

    members: n tensors, see `beside_persistence`; truth: [n, H, C, h, w]; last: [n, C, h, w].
    """
    windows = list(zip(members, truth, last, strict=True))
    return FieldScores(
        ratio([beside_persistence(energy_score, *window) for window in windows]),
        ratio([beside_persistence(variogram_score, *window) for window in windows]),
        RankHistogram.of([rank_counts(made[None], true[None]) for made, true, _ in windows]),
    )
