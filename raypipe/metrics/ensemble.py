"""Scores of an ensemble of forecasts, and of one forecast against another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error over windows."""

    value: float
    se: float


@dataclass(frozen=True)
class Score:
    """How an ensemble did, per window and step of the horizon; every array is [windows, horizon].

    crps: fair CRPS, averaged over a frame's values; reference: the CRPS of persistence, which is its mean
    absolute error; variance: mean variance of the members; error: mean squared error of their mean.
    """

    crps: Array
    reference: Array
    variance: Array
    error: Array
    members: int

    @property
    def ratio(self) -> Estimate:
        """crps_ratio: 0 is perfect, 1 no better than repeating the last frame."""
        return ratio_of_means(self.crps.mean(1), self.reference.mean(1))

    @property
    def ratio_by_step(self) -> Array:
        """crps_ratio at each step of the horizon, [horizon]."""
        return np.asarray(self.crps.mean(0) / self.reference.mean(0))

    @property
    def spread_skill(self) -> float:
        """Spread over error of the mean, 1 for a reliable ensemble (Fortin et al. 2014): sqrt((M+1)/M var / mse)."""
        spread = self.variance.mean() * (self.members + 1) / self.members
        return float(np.sqrt(spread / self.error.mean()))

    def minus(self, other: "Score") -> Estimate:
        """Difference of the two ratios, paired by window: its error is a fraction of either score's."""
        assert self.crps.shape == other.crps.shape
        gap = self.crps.mean(1) - other.crps.mean(1)
        return ratio_of_means(gap, self.reference.mean(1))


def ratio_of_means(top: Array, bottom: Array) -> Estimate:
    """mean(top) / mean(bottom) over windows, with the delta method's standard error (nan for one window)."""
    ratio = top.mean() / bottom.mean()
    se = np.std(top - ratio * bottom, ddof=1) / np.sqrt(len(top)) / bottom.mean() if len(top) > 1 else np.nan
    return Estimate(float(ratio), float(se))


def fair_crps(members: Tensor, truth: Tensor) -> Tensor:
    """mean_i |x_i - y| - sum_{i<j} |x_i - x_j| / (M (M - 1)): unbiased in the number of members (Ferro 2014).

    members: [n, M, ...], truth: [n, ...]; returns [n, ...]. The pairwise sum comes from the sorted members. The
    dimensions after M broadcast: members that are the same at all steps are given, and sorted, once.
    """
    count = members.shape[1]
    error = (members - truth[:, None]).abs().mean(1)
    if count == 1:
        return error
    ordered = members.sort(dim=1).values
    weights = 2 * ordered.new_tensor(range(count)) - (count - 1)
    shaped = weights.view(1, count, *([1] * (truth.ndim - 1)))
    return error - (ordered * shaped).sum(1) / (count * (count - 1))


def score(members: Tensor, truth: Tensor, last: Tensor) -> Score:
    """Score forecasts [n, M, H, ...] of truth [n, H, ...], given the last known frame [n, ...]."""
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
