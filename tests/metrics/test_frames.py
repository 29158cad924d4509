"""PSNR by hand, SSIM against torchmetrics."""

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from raypipe.metrics.frames import psnr, ssim


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_by_hand():
    # peak to peak 2, error 0.2 everywhere: 10 log10(4 / 0.04) = 20 dB; half of the pixels off by 0.2: 23.01 dB
    truth = torch.zeros(2, 3, 4, 4)
    prediction = torch.full_like(truth, 0.2)
    prediction[1, :, :2] = 0
    torch.testing.assert_close(psnr(prediction, truth), torch.tensor([20.0, 20 + 10 * math.log10(2)]))


def test_psnr_per_frame_agrees_with_torchmetrics():
    x, y = images(2, 5, 3, 16, 16, seed=1), images(2, 5, 3, 16, 16, seed=2)
    values = psnr(x, y)
    assert values.shape == (2, 5)
    expected = peak_signal_noise_ratio(x[1, 3], y[1, 3], data_range=2.0)
    torch.testing.assert_close(values[1, 3], expected)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (20, 33)])
def test_ssim_agrees_with_torchmetrics(size):
    """On noise, on its own dimmed copy and on a ramp; where torchmetrics pads, at the border, we do not look."""
    truth = images(3, 3, *size, seed=3)
    ramp = torch.linspace(-1, 1, size[1]).expand(3, 3, *size)
    pairs = [(images(3, 3, *size, seed=4), truth), (truth * 0.9 + 0.05, truth), (ramp + 0.1 * truth, ramp)]
    for prediction, target in pairs:
        _, full = structural_similarity_index_measure(prediction, target, data_range=2.0, return_full_image=True)
        interior = full[..., 5:-5, 5:-5].mean((1, 2, 3))
        torch.testing.assert_close(ssim(prediction, target), interior, atol=2e-5, rtol=0)


def test_ssim_of_a_video_is_per_frame():
    x, y = images(2, 4, 3, 16, 16, seed=5), images(2, 4, 3, 16, 16, seed=6)
    values = ssim(x, y)
    assert values.shape == (2, 4)
    torch.testing.assert_close(values[1, 2], ssim(x[1, 2], y[1, 2]))


def test_members_and_steps_broadcast():
    members, truth = images(4, 1, 3, 16, 16, seed=7), images(5, 3, 16, 16, seed=8)  # a frame shown at every step
    shown = members.expand(-1, 5, -1, -1, -1)
    for metric in (psnr, ssim):
        values = metric(members, truth)
        assert values.shape == (4, 5)
        torch.testing.assert_close(values, metric(shown, truth.expand_as(shown)))


def test_of_equal_frames():
    x = images(2, 3, 16, 16)
    assert torch.isinf(psnr(x, x)).all()
    torch.testing.assert_close(ssim(x, x), torch.ones(2))


def test_ssim_falls_with_noise():
    x = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    noise = images(1, 3, 32, 32)
    values = [ssim(x + level * noise, x).item() for level in (0.0, 0.05, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)
