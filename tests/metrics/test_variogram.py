"""The variogram score by hand, and that its expectation does not depend on the number of members."""

import math

import pytest
import torch

from raypipe.metrics.variogram import pairs_of, variogram_score


def test_one_pair_by_hand():
    """Values 0 and 4 of the truth, whose root of the difference is 2; members with roots 1 and 3, and 1 and 1."""
    truth = torch.tensor([0.0, 4.0]).view(1, 1, 1, 2)
    members = torch.tensor([[0.0, 1.0], [0.0, 9.0]]).view(1, 2, 1, 1, 2)
    assert variogram_score(members, truth).item() == pytest.approx((2 - 2) ** 2 - 2 / 2)
    assert variogram_score(members[:, [0, 0]], truth).item() == pytest.approx(1)
    assert variogram_score(members[:, :1], truth).item() == pytest.approx(1)


def test_the_truth_and_the_truth_plus_a_constant_score_zero():
    truth = torch.randn(2, 3, 9, 9)
    assert variogram_score(truth[:, None], truth).abs().max() == 0
    torch.testing.assert_close(variogram_score(truth[:, None] + 1, truth), torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "most"), [((3, 64, 64), 7000), ((3, 128, 128), 7000), ((4, 8, 8), 1800)])
def test_pairs_are_few_however_large_the_frame(shape, most):
    pairs = pairs_of(torch.Size(shape), torch.zeros(()))
    assert most / 2 < len(pairs.weight) <= most
    assert pairs.weight.sum().item() == pytest.approx(1)
    assert (pairs.first != pairs.second).all() and max(pairs.first.max(), pairs.second.max()) < math.prod(shape)


@pytest.mark.parametrize("members", [2, 8])
def test_the_expectation_does_not_depend_on_the_number_of_members(members):
    """Two independent normal values a and b: the expected score is the variance of R = |a - b|^(1/2).

    The truth and the members have the same R, so the bias of the plain score is the variance of the mean of M of them.
    """
    count = 40_000
    generator = torch.Generator().manual_seed(members)
    truth = torch.randn(count, 1, 1, 2, generator=generator, dtype=torch.float64)
    x = torch.randn(count, members, 1, 1, 2, generator=generator, dtype=torch.float64)
    mean_root = 2**0.5 * math.gamma(3 / 4) / math.sqrt(math.pi)  # E|N(0, 2)|^(1/2)
    variance = 2 / math.sqrt(math.pi) - mean_root**2  # E|N(0, 2)| less the square
    scores = variogram_score(x, truth)
    assert abs(scores.mean().item() - variance) < 4 * scores.std().item() / math.sqrt(count)


def test_members_that_are_the_same_at_all_steps_are_given_once():
    members, truth = torch.randn(1, 4, 2, 8, 8), torch.randn(5, 2, 8, 8)
    torch.testing.assert_close(
        variogram_score(members, truth), variogram_score(members.expand(5, -1, -1, -1, -1), truth)
    )
