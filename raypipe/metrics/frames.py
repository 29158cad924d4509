"""Metrics of frames against frames."""

import torch
import torch.nn.functional as F
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
    x, y = (t.reshape(-1, 1, *t.shape[-2:]) for t in (prediction, truth))
    offsets = torch.arange(11, device=x.device, dtype=x.dtype) - 5
    kernel = torch.exp(-offsets.square() / (2 * 1.5**2))
    kernel = kernel / kernel.sum()

    def blur(t: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(t, kernel.view(1, 1, 11, 1)), kernel.view(1, 1, 1, 11))

    mean_x, mean_y, xx, yy, xy = blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.mean((-3, -2, -1)).reshape(*truth.shape[:-3], -1).mean(-1)
