"""Losses against values worked out by hand."""

import math

import pytest
import torch

from raypipe.sde import losses


def test_flow_nll_by_hand():
    # (v - f)^2 = 4, 0 and delta = 1: (log 5 + log 1) / 2 - log 1
    value = losses.flow_nll(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0]), delta=1.0)
    assert value.item() == pytest.approx(0.8047190, abs=1e-6)


def test_flow_nll_is_zero_where_the_flow_is_exact_and_delta_sets_its_floor():
    v = torch.tensor([0.3, -2.0])
    assert losses.flow_nll(v, v, delta=1e-3).item() == pytest.approx(0, abs=1e-6)
    # an error of sqrt(delta) costs log 2
    assert losses.flow_nll(v + math.sqrt(1e-3), v, delta=1e-3).item() == pytest.approx(math.log(2), abs=1e-5)


def test_flow_mse_by_hand():
    # (1 + 4 + 0) / 3
    value = losses.flow_mse(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([2.0, -2.0, 5.0]))
    assert value.item() == pytest.approx(5 / 3)


def test_the_denoiser_points_back_from_the_noise():
    noise = torch.tensor([0.5, -1.0])
    assert losses.denoiser(-noise, noise).item() == 0
    assert losses.denoiser(noise, noise).item() == pytest.approx((1 + 4) / 2)


def test_diffusion_regression_by_hand():
    # g = 2, r = -1: (2 - 1)^2 + (log 2 - 0)^2; g = 1, r = 3: (1 - 3)^2 + (0 - log 3)^2; 1e-6 does not show
    value = losses.diffusion_regression(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 3.0]))
    assert value.item() == pytest.approx((1 + math.log(2) ** 2 + 4 + math.log(3) ** 2) / 2, abs=1e-5)


def test_diffusion_regression_floors_a_residual_of_zero():
    # log(0 + 1e-6) / 2 = log 1e-3
    assert losses.diffusion_regression(torch.tensor([1e-3]), torch.zeros(1)).item() == pytest.approx(1e-6, abs=1e-7)


def test_diffusion_nll_by_hand():
    # g = 2, r = 2: 4/8 + log 2; g = 1, r = -2: 4/2 + 0
    value = losses.diffusion_nll(torch.tensor([2.0, 1.0]), torch.tensor([2.0, -2.0]))
    assert value.item() == pytest.approx((0.5 + math.log(2) + 2) / 2, abs=1e-6)


def test_diffusion_nll_is_proper():
    """Least where g is the residual's standard deviation."""
    residual = 0.7 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    scores = {g: losses.diffusion_nll(torch.full_like(residual, g), residual).item() for g in (0.5, 0.6, 0.7, 0.8, 1.0)}
    assert min(scores, key=scores.__getitem__) == 0.7
