"""Distances of clouds of features: against matrix roots of scipy and a sum over pairs, and where those fail."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm

from raypipe.metrics.frechet import frechet_distance, kernel_distance


def clouds(n, m, features, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) @ rng.normal(size=(features, features))
    return x, 2 * rng.normal(size=(m, features)) + 0.3


@pytest.mark.parametrize(("n", "m", "features"), [(40, 50, 8), (300, 200, 50), (30, 30, 64), (2, 3, 5)])
def test_the_frechet_distance_is_that_of_matrix_roots(n, m, features):
    """With fewer clips than features the covariances are singular, and the root itself is good to few digits."""
    x, y = clouds(n, m, features)
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-3 if n < features else 1e-9)
    assert frechet_distance(y, x) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_the_frechet_distance_of_known_normal_distributions():
    """Of features that do not depend on each other, it is the sum of (m - m')^2 + (s - s')^2."""
    unit = np.array([[1.0], [-1.0]]) / math.sqrt(2)  # mean 0, variance 1
    one = np.concatenate([3 * unit, 5 * unit], axis=1)
    assert frechet_distance(3 * unit, unit + 4) == pytest.approx(16 + 4)
    assert frechet_distance(one, one + 1) == pytest.approx(2)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_a_large_offset_keeps_its_digits():
    x, y = clouds(64, 64, 16)
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_no_frechet_distance_of_a_single_clip_or_of_features_that_are_not_finite():
    x, y = clouds(8, 8, 3)
    y[0, 0] = math.inf
    assert math.isnan(frechet_distance(x, y)) and math.isnan(frechet_distance(x[:1], x))


def test_the_kernel_distance_is_that_of_all_pairs():
    x, y = clouds(5, 7, 3)

    def mean(first, second):
        return np.mean([(np.dot(a, b) / 3) ** 2 for a in first for b in second])

    assert kernel_distance(x, y) == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert kernel_distance(x, x) == pytest.approx(0, abs=1e-9)
