"""Scores of ensembles against scoringrules, an independent implementation."""

import numpy as np
import pytest
import scoringrules
import torch

from raypipe.metrics.ensemble import energy_score, fair_crps
from raypipe.metrics.variogram import variogram_score

SHAPES = [(4, 8, 8), (3, 20, 33), (1, 5, 3)]


def drawn(shape, members, windows=3):
    generator = torch.Generator().manual_seed(members)
    truth = torch.randn(windows, *shape, generator=generator, dtype=torch.float64)
    return torch.randn(windows, members, *shape, generator=generator, dtype=torch.float64), truth


def flat(tensor, leading):
    return tensor.flatten(leading).numpy()


def all_weights(shape):
    """Weight of each pair of values, [d, d], by one loop over the values; the grid of 16 keeps every row up to 31."""
    channels, height, width = shape
    number = np.arange(np.prod(shape)).reshape(shape)
    weights = np.zeros((number.size, number.size))
    for c, y, x in np.ndindex(shape):
        if y % (max(1, height // 16)) or x % (max(1, width // 16)):
            continue
        for d in (1, 2, 4, 8):
            if y + d < height:
                weights[number[c, y, x], number[c, y + d, x]] += 1 / d
            if x + d < width:
                weights[number[c, y, x], number[c, y, x + d]] += 1 / d
        if channels > 1:
            weights[number[c, y, x], number[(c + 1) % channels, y, x]] += 1
    return weights / weights.sum()


@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_fair_crps(shape, members):
    x, truth = drawn(shape, members)
    expected = scoringrules.crps_ensemble(truth.numpy(), x.numpy(), m_axis=1, estimator="fair")
    np.testing.assert_allclose(fair_crps(x, truth), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_fair_energy_score(shape, members):
    x, truth = drawn(shape, members)
    expected = scoringrules.es_ensemble(flat(truth, 1), flat(x, 2), estimator="fair") / np.sqrt(np.prod(shape))
    np.testing.assert_allclose(energy_score(x, truth), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("members", [2, 5])
@pytest.mark.parametrize("shape", SHAPES[::2])
def test_fair_variogram_score(shape, members):
    x, truth = drawn(shape, members)
    made = variogram_score(x, truth)
    weights = all_weights(shape)
    expected = scoringrules.vs_ensemble(flat(truth, 1), flat(x, 2), weights, p=0.5, estimator="fair")
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-6)


def test_variogram_score_of_one_member_and_of_a_frame_larger_than_the_grid():
    shape = (1, 33, 20)  # every second row
    x, truth = drawn(shape, 1)
    expected = scoringrules.vs_ensemble(flat(truth, 1), flat(x, 2), all_weights(shape), p=0.5)
    np.testing.assert_allclose(variogram_score(x, truth), expected, rtol=0, atol=1e-6)
