"""Scores of ensemble forecasts, and paired differences between two of them; `raypipe.sde` defines crps_ratio."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """An estimate and its standard error over windows (nan for a single window)."""

    value: float
    se: float


@dataclass(frozen=True)
class Score:
    """Scores of ensemble forecasts per window and predicted frame; every array is [windows, horizon].

    crps: fair CRPS; reference: CRPS of persistence, which is its absolute error; variance: variance of the members;
    error: squared error of the ensemble mean. All are means over the elements of a frame. members: ensemble size M.
    """

    crps: Array
    reference: Array
    variance: Array
    error: Array
    members: int

    @property
    def ratio(self) -> Estimate:
        """crps_ratio, mean CRPS over that of persistence: 0 is perfect, 1 is as good as repeating the last frame."""
        return ratio_of_means(self.crps.mean(1), self.reference.mean(1))

    @property
    def ratio_by_step(self) -> Array:
        """crps_ratio of each predicted frame, [horizon]."""
        return np.asarray(self.crps.mean(0) / self.reference.mean(0))

    @property
    def spread_skill(self) -> float:
        """sqrt((M+1)/M variance / error), which is 1 for a reliable ensemble (Fortin et al. 2014); 0 without spread."""
        return float(self._spread_skill(None))

    @property
    def spread_skill_by_step(self) -> Array:
        """spread_skill of each predicted frame, [horizon]."""
        return self._spread_skill(0)

    def _spread_skill(self, axis: int | None) -> Array:
        spread = np.asarray(self.variance.mean(axis) * (self.members + 1) / self.members)
        error = np.asarray(self.error.mean(axis))
        return np.asarray(np.sqrt(np.divide(spread, error, out=np.zeros_like(spread), where=spread > 0)))

    def minus(self, other: "Score") -> Estimate:
        """crps_ratio minus that of `other` on the same windows.

        The standard error is that of the paired differences, which is usually far below that of either ratio.
        """
        assert self.crps.shape == other.crps.shape
        gap = self.crps.mean(1) - other.crps.mean(1)
        return ratio_of_means(gap, self.reference.mean(1))


def ratio_of_means(top: Array, bottom: Array) -> Estimate:
    """mean(top) / mean(bottom) over windows, with the delta method's standard error (nan for one window)."""
    ratio = top.mean() / bottom.mean()
    se = np.std(top - ratio * bottom, ddof=1) / np.sqrt(len(top)) / bottom.mean() if len(top) > 1 else np.nan
    return Estimate(float(ratio), float(se))


def fair_crps(members: Tensor, truth: Tensor, fairness: float = 1.0) -> Tensor:
    """Fair CRPS, mean_i |y_i - y| - sum_{i<j} |y_i - y_j| / (M (M - 1)), per element (Ferro 2014).

    "Fair" means that its expectation does not depend on the number of members M. For M = 1 it is the absolute error.
    fairness: a in a fair + (1 - a) plain CRPS, the almost fair CRPS, on which a network can be trained with few
    members: the fair one has degenerate minima (arXiv 2412.15832).

    members: [n, M, ...]; truth: [n, ...]; returns [n, ...]. The dimensions after M broadcast, so members that are the
    same for all predicted frames can be passed once. The sum over pairs is computed from the sorted members.
    """
    count = members.shape[1]
    error = (members - truth[:, None]).abs().mean(1)
    if count == 1:
        return error
    ordered = members.sort(dim=1).values
    weights = 2 * ordered.new_tensor(range(count)) - (count - 1)
    shaped = weights.view(1, count, *([1] * (truth.ndim - 1)))
    return error - _weight(fairness, count) * (ordered * shaped).sum(1) / (count * (count - 1))


def energy_score(members: Tensor, truth: Tensor, fairness: float = 1.0) -> Tensor:
    """Fair energy score, mean_i ||y_i - y|| - sum_{i<j} ||y_i - y_j|| / (M (M - 1)), of whole frames.

    It is the CRPS with the Euclidean norm over a frame in place of the absolute value of an element (Gneiting and
    Raftery 2007), so it sees whether the elements of a member fit together. The norm is that of the root mean square,
    so the scale is that of an element. fairness: see `fair_crps`.

    members: [n, M, C, h, w]; truth: [n, C, h, w]; returns [n].
    """
    count = members.shape[1]
    error = _norm(members - truth[:, None]).mean(1)
    if count == 1:
        return error
    i, j = torch.triu_indices(count, count, 1, device=members.device)
    pairs = _norm(members[:, i] - members[:, j]).sum(1)
    return error - _weight(fairness, count) * pairs / (count * (count - 1))


def _norm(difference: Tensor) -> Tensor:
    """Root mean square over the last three dimensions. The square of 1e-4 keeps its gradient finite at 0."""
    return (difference.square().mean((-3, -2, -1)) + 1e-8).sqrt()


def _weight(fairness: float, count: int) -> float:
    """Weight of the spread term in the almost fair score, 1 for the fair one and (M - 1)/M for the plain one."""
    return 1 - (1 - fairness) / count


def score(members: Tensor, truth: Tensor, last: Tensor) -> Score:
    """Score forecasts of `horizon` frames by M members on n windows.

    members: [n, M, horizon, C, h, w]; truth: [n, horizon, C, h, w]; last: the last given frame, [n, C, h, w].
    """
    per_frame = tuple(range(2, truth.ndim))

    def mean(values: Tensor) -> Array:
        return np.asarray(values.mean(per_frame).double().cpu().numpy())

    deterministic = bool((members == members[:, :1]).all())
    spread = members.var(1) if members.shape[1] > 1 else truth.new_zeros(truth.shape)
    return Score(
        crps=mean(fair_crps(members[:, :1] if deterministic else members, truth)),
        reference=mean((truth - last[:, None]).abs()),
        variance=mean(spread),
        error=mean((members.mean(1) - truth).square()),
        members=members.shape[1],
    )
