"""Metrics of frames against frames. Leading dimensions broadcast, so that nothing is computed twice."""

import torch
from torch import Tensor


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of frames [..., 3, H, W] in [-1, 1] (peak to peak 2), [...].

    Infinite where they are equal.
    """
    return 10 * torch.log10(4 / (prediction - truth).square().mean((-3, -2, -1)))


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of frames [..., 3, H, W] in [-1, 1], [...] (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, k1 = 0.01, k2 = 0.03, averaged over the pixels whose window
    fits and over channels.
    """
    # As products of matrices, which a CPU does ten times as fast as convolutions of one channel.
    rows, columns = (_gaussian(size, truth) for size in truth.shape[-2:])

    def blur(t: Tensor) -> Tensor:
        return rows @ (t @ columns.mT)

    x, y = prediction, truth
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.mean((-3, -2, -1))


def _gaussian(size: int, like: Tensor) -> Tensor:
    """The weights [size - 10, size] of each pixel in each window that fits."""
    pixels = torch.arange(size, device=like.device, dtype=like.dtype)
    offsets = pixels - pixels[5:-5, None]
    weights = torch.exp(-offsets.square() / (2 * 1.5**2)).masked_fill(offsets.abs() > 5, 0)
    return weights / weights.sum(1, keepdim=True)
