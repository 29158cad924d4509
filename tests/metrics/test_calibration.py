"""Rank histogram, reliability index and coverage: exact cases, ties, and ensembles that are reliable or are not."""

import numpy as np
import pytest
import torch

from raypipe.metrics.calibration import LEVELS, RankHistogram, rank_counts


def histogram(*counts):
    return RankHistogram.of([torch.tensor(counts, dtype=torch.float64)])


def test_ranks_by_hand():
    members = torch.tensor([[1.0, 3.0, 2.0]] * 4)
    truth = torch.tensor([0.5, 1.5, 2.5, 9.0])
    assert rank_counts(members, truth).tolist() == [1, 1, 1, 1]
    assert rank_counts(members[3:], truth[3:]).tolist() == [0, 0, 0, 1]


def test_ties_are_shared_by_all_ranks_that_they_allow():
    members = torch.tensor([[0.0, 0.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    counts = rank_counts(members, torch.tensor([0.0, 5.0]))
    np.testing.assert_allclose(counts, np.array([1 / 3, 1 / 3, 1 / 3, 0, 0]) + 1 / 5)


def test_members_that_are_the_same_at_all_steps_are_given_once():
    members, truth = torch.randn(2, 3, 1, 4).round(decimals=1), torch.randn(2, 6, 4).round(decimals=1)
    assert torch.equal(rank_counts(members, truth), rank_counts(members.expand(-1, -1, 6, -1), truth))


def test_windows_are_added():
    counts = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])]
    np.testing.assert_allclose(RankHistogram.of(counts).frequencies, [3 / 8, 5 / 8])


def test_reliability_index():
    assert histogram(7, 7, 7, 7, 7).reliability_index == pytest.approx(0)
    assert histogram(0, 0, 0, 0, 5).reliability_index == pytest.approx(2 * 4 / 5)  # the largest one
    assert histogram(2, 0, 0, 2).reliability_index == pytest.approx(4 / 4)
    assert histogram(5, 5).reliability_index is None  # a single member


def test_coverage_of_intervals_between_members():
    """19 members: the central 90, 80 and 50% leave out 1, 2 and 5 of the 20 ranks on each side."""
    counts = np.zeros(20)
    counts[[0, 1, 4, 5, 10, 19]] = 10, 20, 30, 15, 20, 5
    found = histogram(*counts)
    assert [found.coverage(level) for level in (0.5, 0.8, 0.9)] == pytest.approx([0.35, 0.65, 0.85])


def test_coverage_of_an_interval_that_ends_within_a_rank():
    """4 members, 50%: the middle rank, and of its neighbors, from 0.2 to 0.4 and from 0.6 to 0.8, three quarters."""
    assert histogram(1, 2, 3, 2, 2).coverage(0.5) == pytest.approx(0.3 + 0.75 * 0.4)


@pytest.mark.parametrize(
    ("members", "known"), [(1, ()), (2, ()), (3, (0.5,)), (4, (0.5,)), (9, (0.5, 0.8)), (19, (0.5, 0.8, 0.9))]
)
def test_few_members_say_nothing_of_wide_intervals(members, known):
    flat = histogram(*[1] * (members + 1))
    assert {level: flat.coverage(level) for level in LEVELS} == {
        level: pytest.approx(level) if level in known else None for level in LEVELS
    }


def test_a_reliable_ensemble_one_that_is_too_narrow_and_one_that_is_too_wide():
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(20_000, 1, generator=generator)
    x = torch.randn(20_000, 19, generator=generator)
    truth = center[:, 0] + torch.randn(20_000, generator=generator)
    right, narrow, wide = (RankHistogram.of([rank_counts(center + scale * x, truth)]) for scale in (1, 0.5, 2))
    assert [right.coverage(level) for level in LEVELS] == pytest.approx(LEVELS, abs=0.012)
    assert right.reliability_index < 0.06 < 0.4 < min(narrow.reliability_index, wide.reliability_index)
    for level in LEVELS:
        assert narrow.coverage(level) < level - 0.1 < level + 0.04 < wide.coverage(level)
    assert min(narrow.frequencies[::19]) > 0.1 > 0.02 > max(wide.frequencies[::19])
    assert narrow.frequencies[9] < 0.05 < 0.07 < wide.frequencies[9]


def test_values_of_few_kinds_do_not_look_unreliable():
    """Pixels that are background or body in the truth and in the members with the same probability, so mostly ties."""
    generator = torch.Generator().manual_seed(1)
    values = (torch.rand(40_000, 5, generator=generator) < 0.1).float()
    assert RankHistogram.of([rank_counts(values[:, 1:], values[:, 0])]).reliability_index < 0.02
