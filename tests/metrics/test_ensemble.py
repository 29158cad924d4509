"""Scores of ensembles against brute force, closed forms and resampling."""

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from raypipe.metrics.ensemble import Score, fair_crps, ratio_of_means, score


def brute_force(members: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """E|X - y| - E|X - X'| / 2 over distinct pairs, one pair after the other."""
    count = members.shape[1]
    error = sum((members[:, i] - truth).abs() for i in range(count)) / count
    pairs = [(members[:, i] - members[:, j]).abs() for i, j in itertools.permutations(range(count), 2)]
    return error - sum(pairs) / len(pairs) / 2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(2, 9), ties=st.booleans())
def test_fair_crps_is_the_sum_over_pairs(seed, members, ties):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, members, 2, 4, generator=generator, dtype=torch.float64)
    truth = torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)
    if ties:
        x, truth = x.round(), truth.round()
    torch.testing.assert_close(fair_crps(x, truth), brute_force(x, truth))


def test_fair_crps_by_hand():
    # members 0, 1, 3, truth 2: (2 + 1 + 1)/3 - (1 + 3 + 2) / (3 * 2)
    value = fair_crps(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([2.0]))
    assert value.item() == pytest.approx(4 / 3 - 1)


@pytest.mark.parametrize("members", [1, 4])
def test_members_that_are_the_same_at_all_steps_are_given_once(members):
    x, truth = torch.randn(2, members, 1, 3), torch.randn(2, 5, 3)
    torch.testing.assert_close(fair_crps(x, truth), fair_crps(x.expand(-1, -1, 5, -1), truth))


def test_one_member_scores_its_absolute_error():
    assert fair_crps(torch.tensor([[1.5]]), torch.tensor([-1.0])).item() == 2.5


@pytest.mark.parametrize("members", [2, 3, 8])
def test_fair_crps_is_unbiased_in_the_number_of_members(members):
    """The CRPS of N(0, 1) at y is y (2 Phi(y) - 1) + 2 phi(y) - 1/sqrt(pi) (Gneiting and Raftery 2007), for any M."""
    y, count = 0.7, 200_000
    cdf, pdf = (1 + math.erf(y / math.sqrt(2))) / 2, math.exp(-(y**2) / 2) / math.sqrt(2 * math.pi)
    closed = y * (2 * cdf - 1) + 2 * pdf - 1 / math.sqrt(math.pi)
    x = torch.randn(count, members, generator=torch.Generator().manual_seed(members), dtype=torch.float64)
    values = fair_crps(x, torch.full((count,), y, dtype=torch.float64))
    assert abs(values.mean().item() - closed) < 4 * values.std().item() / math.sqrt(count)


def test_fair_crps_of_many_members_is_the_closed_form():
    y = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    x = torch.randn(3, 100_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    normal = torch.distributions.Normal(0.0, 1.0)
    closed = y * (2 * normal.cdf(y) - 1) + 2 * normal.log_prob(y).exp() - 1 / math.sqrt(math.pi)
    torch.testing.assert_close(fair_crps(x, y), closed, rtol=0, atol=0.02)


def test_the_true_distribution_scores_best():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(20_000, generator=generator)
    x = torch.randn(20_000, 8, generator=generator)
    right = fair_crps(x, truth).mean()
    for shift, scale in ((0.3, 1), (0, 0.7), (0, 1.4)):
        assert right < fair_crps(shift + scale * x, truth).mean()


def correlated(windows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    bottom = rng.gamma(8, 0.1, windows)
    return 0.6 * bottom + rng.normal(0, 0.05, windows), bottom


def test_standard_error_of_a_ratio_agrees_with_the_bootstrap():
    top, bottom = correlated(200, seed=0)
    estimate = ratio_of_means(top, bottom)
    assert estimate.value == pytest.approx(top.mean() / bottom.mean())
    drawn = np.random.default_rng(1).integers(0, 200, (4000, 200))
    bootstrap = (top[drawn].mean(1) / bottom[drawn].mean(1)).std()
    assert estimate.se == pytest.approx(bootstrap, rel=0.08)


def test_standard_error_of_a_ratio_agrees_with_repetition():
    ratios = [ratio_of_means(*correlated(100, seed)) for seed in range(600)]
    actual = np.std([r.value for r in ratios])
    assert np.mean([r.se for r in ratios]) == pytest.approx(actual, rel=0.1)


def test_standard_error_of_one_window_is_unknown():
    assert math.isnan(ratio_of_means(np.array([1.0]), np.array([2.0])).se)


def make_score(crps: np.ndarray, reference: np.ndarray) -> Score:
    return Score(crps, reference, np.ones_like(crps), np.ones_like(crps), members=8)


def test_paired_difference():
    """Two scores that share their windows' difficulty differ far more surely than either is known."""
    rng = np.random.default_rng(0)
    reference = rng.gamma(4, 0.2, (64, 3))
    base = 0.5 * reference + rng.normal(0, 0.05, (64, 1))
    mine, other = make_score(base + rng.normal(-0.01, 0.005, (64, 3)), reference), make_score(base, reference)
    difference = mine.minus(other)
    assert difference.value == pytest.approx(mine.ratio.value - other.ratio.value)
    assert difference.value < -2 * difference.se
    assert difference.se < mine.ratio.se / 4
    same = mine.minus(mine)
    assert (same.value, same.se) == (0, 0)
    assert other.minus(mine).value == pytest.approx(-difference.value)


def test_ratio_by_step():
    s = make_score(np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[4.0, 4.0], [4.0, 12.0]]))
    np.testing.assert_allclose(s.ratio_by_step, [0.5, 0.25])
    assert s.ratio.value == pytest.approx(4 / 12)


def test_spread_skill_by_step():
    variance, error = np.array([[1.0, 0.0], [3.0, 8.0]]), np.array([[2.0, 5.0], [2.0, 5.0]])
    s = Score(np.ones((2, 2)), np.ones((2, 2)), variance, error, members=4)
    np.testing.assert_allclose(s.spread_skill_by_step, np.sqrt([1.25 * 2 / 2, 1.25 * 4 / 5]))
    assert s.spread_skill == pytest.approx(np.sqrt(1.25 * 3 / 3.5))


@pytest.mark.parametrize("members", [4, 8])
def test_score_by_its_definitions(members):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, members, 3, 2, 4, 4, generator=generator)
    truth, last = torch.randn(6, 3, 2, 4, 4, generator=generator), torch.randn(6, 2, 4, 4, generator=generator)
    s = score(x, truth, last)
    assert s.crps.shape == s.reference.shape == s.variance.shape == s.error.shape == (6, 3)
    np.testing.assert_allclose(s.crps, brute_force(x, truth).mean((2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(s.reference, (truth - last[:, None]).abs().mean((2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(s.variance, x.var(1).mean((2, 3, 4)), rtol=1e-5)
    np.testing.assert_allclose(s.error, (x.mean(1) - truth).square().mean((2, 3, 4)), rtol=1e-5)
    assert s.members == members


def test_persistence_has_ratio_one_however_many_members():
    generator = torch.Generator().manual_seed(4)
    truth, last = torch.randn(5, 2, 3, 3, generator=generator), torch.randn(5, 3, 3, generator=generator)
    repeated = last[:, None, None].expand(-1, 8, 2, -1, -1)
    s = score(repeated, truth, last)
    assert s.ratio.value == pytest.approx(1)
    assert s.ratio.se == pytest.approx(0, abs=1e-6)
    assert s.spread_skill == 0


def test_a_perfect_forecast_has_ratio_zero():
    truth, last = torch.ones(3, 2, 3, 3), torch.zeros(3, 3, 3)
    perfect = score(truth[:, None], truth, last)
    assert (perfect.ratio.value, perfect.spread_skill, *perfect.spread_skill_by_step) == (0, 0, 0, 0)


@pytest.mark.parametrize("members", [2, 4, 16])
def test_spread_skill_of_a_reliable_ensemble_is_one(members):
    """Members and truth from one distribution, with a centre that differs by window."""
    generator = torch.Generator().manual_seed(5)
    centre = 3 * torch.randn(400, 1, 2, 8, 8, generator=generator)
    x = centre + torch.randn(400, members, 2, 8, 8, generator=generator)
    truth = centre[:, 0] + torch.randn(400, 2, 8, 8, generator=generator)
    assert score(x, truth, centre[:, 0, 0]).spread_skill == pytest.approx(1, abs=0.02)
    narrow = centre + 0.5 * (x - centre)
    assert score(narrow, truth, centre[:, 0, 0]).spread_skill < 0.65
