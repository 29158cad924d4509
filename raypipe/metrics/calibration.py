"""Whether the truth lies among the members of an ensemble as one more member would: rank histogram and coverage."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = (0.5, 0.8, 0.9)
"""Levels of the central intervals whose coverage is reported."""


def rank_counts(members: Tensor, truth: Tensor) -> Tensor:
    """How often the truth has each rank among the M members, [M + 1], float64.

    Rank r means that r members are below the truth. If members equal the truth, its possible ranks share the count
    evenly, as if ties were broken at random.

    members: [n, M, ...]; truth: [n, ...]. n and the dimensions after M broadcast.
    """
    count = members.shape[1]
    below, equal = (members < truth[:, None]).sum(1), (members == truth[:, None]).sum(1)
    pairs = torch.bincount((below * (count + 1) + equal).flatten(), minlength=(count + 1) ** 2)
    counts = torch.zeros(count + 1, dtype=torch.float64)
    for code in pairs.nonzero().flatten().tolist():
        low, ties = divmod(code, count + 1)
        counts[low : low + ties + 1] += pairs[code].item() / (ties + 1)
    return counts


@dataclass(frozen=True)
class RankHistogram:
    """Frequency of each rank of the truth among M members, [M + 1]; a reliable ensemble has 1 / (M + 1) for each.

    It is the histogram of the probability integral transform (PIT) with M + 1 bins: ranks heaped at both ends show too
    small a spread, ranks heaped in the middle too large a one.
    """

    frequencies: tuple[float, ...]

    @classmethod
    def of(cls, counts: Sequence[Tensor]) -> "RankHistogram":
        """The histogram over all windows. counts: what `rank_counts` returned for each of them."""
        total = torch.stack(list(counts)).sum(0)
        return cls(tuple((total / total.sum()).tolist()))

    @property
    def reliability_index(self) -> float | None:
        """sum_r |frequency_r - 1 / (M + 1)|, 0 for a reliable ensemble, at most 2 M / (M + 1).

        Delle Monache et al. 2006. With few windows it stays above 0, as the values of a frame depend on each other.
        None for a single member, whose two ranks show a bias, but no spread.
        """
        if len(self.frequencies) == 2:
            return None
        return sum(abs(frequency - 1 / len(self.frequencies)) for frequency in self.frequencies)

    def coverage(self, level: float) -> float | None:
        """How often the truth lies in the central interval of this level, which a reliable ensemble does with `level`.

        The members divide the line into M + 1 parts, and a reliable ensemble has the truth in each of them equally
        often. Of a part in which the interval ends, the share of the part that lies within the interval counts. None if
        the interval reaches beyond the outermost members, of which M members say nothing: level > (M - 1) / (M + 1).
        """
        bins = len(self.frequencies)
        if level > (bins - 2) / bins + 1e-9:
            return None
        low, high = (1 - level) / 2, (1 + level) / 2
        inside = [max(0.0, min((rank + 1) / bins, high) - max(rank / bins, low)) for rank in range(bins)]
        return sum(frequency * part * bins for frequency, part in zip(self.frequencies, inside, strict=True))
