"""Data augmentation: random flip and color jitter, drawn once per clip and equal for all its frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raypipe.data.frames import to_float, to_uint8

BRIGHTNESS = CONTRAST = SATURATION = 0.1
"""Brightness, contrast and saturation factors are drawn from [1 - x, 1 + x]."""
HUE = 0.25
"""Hue shifts are drawn from [-x, x], in turns of the color circle."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the grey value (luma of ITU-R BT.601)."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation parameters of n clips.

    flip: bool [n], whether a clip is flipped left to right. jitter: [n, 4], the factors of brightness, contrast and
    saturation and the hue shift in turns; None for no color jitter.
    """

    flip: Tensor
    jitter: Tensor | None

    def part(self, offset: int, count: int) -> Augmentation:
        """The parameters of clips [offset : offset + count], such as one rank's part of a global batch."""
        chosen = slice(offset, offset + count)
        return Augmentation(self.flip[chosen], None if self.jitter is None else self.jitter[chosen])


def draw(count: int, generator: torch.Generator, flip: bool = True, jitter: bool = True) -> Augmentation:
    """Draw parameters for `count` clips. Consumes the same random numbers whether flip and jitter are on or off."""
    uniform = torch.rand(count, 5, generator=generator, device=generator.device)
    spread = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE], device=generator.device)
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0], device=generator.device)
    return Augmentation(
        flip=(uniform[:, 0] < 0.5) & flip, jitter=centre + spread * (2 * uniform[:, 1:] - 1) if jitter else None
    )


def augment(frames: Tensor, augmentation: Augmentation) -> Tensor:
    """Augment clips: float [b, T, 3, H, W] in [-1, 1], or uint8 [b, T, H, W, 3]. The result has the same format.

    The order is flip, brightness (rgb * b), contrast (mean + c (rgb - mean), with the mean of the clip's grey values),
    saturation (grey + s (rgb - grey)) and hue. The color operations work on rgb in [0, 1], and their results are
    clamped to it. uint8 input is rounded only once, at the end. Raises ValueError for another shape or another number
    of clips.
    """
    if frames.dtype == torch.uint8:
        return to_uint8(augment(to_float(frames), augmentation))
    if frames.ndim != 5 or frames.shape[2] != 3 or len(frames) != len(augmentation.flip):
        raise ValueError(f"frames: must be [{len(augmentation.flip)}, T, 3, H, W], not {list(frames.shape)}")
    flip = augmentation.flip.to(frames.device).view(-1, 1, 1, 1, 1)
    frames = torch.where(flip, frames.flip(-1), frames)
    if augmentation.jitter is None:
        return frames
    brightness, contrast, saturation, hue = augmentation.jitter.to(frames).view(-1, 4, 1, 1, 1, 1).unbind(1)
    rgb = (((frames + 1) / 2) * brightness).clamp(0, 1)
    # Use the mean of the whole clip: with a mean per frame, the contrast would flicker.
    mean = _grey(rgb).mean(dim=(1, 2, 3, 4), keepdim=True)
    rgb = (mean + contrast * (rgb - mean)).clamp(0, 1)
    grey = _grey(rgb)
    rgb = (grey + saturation * (rgb - grey)).clamp(0, 1)
    return _turn_hue(rgb, hue) * 2 - 1


def _grey(rgb: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=rgb.dtype, device=rgb.device).view(3, 1, 1)
    return (rgb * weights).sum(2, keepdim=True)


def _turn_hue(rgb: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of rgb [b, T, 3, H, W] in [0, 1] by `turns`, at constant HSV saturation and value."""
    value, low = rgb.amax(2, keepdim=True), rgb.amin(2, keepdim=True)
    chroma = value - low
    red, green, blue = rgb[:, :, :1], rgb[:, :, 1:2], rgb[:, :, 2:]
    scale = chroma.clamp_min(1e-8)
    sixths = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    # HSV to RGB without branches: value - chroma * clamp(min(k, 4 - k), 0, 1), k = (n + 6 hue) mod 6, n = 5, 3, 1.
    n = torch.tensor([5.0, 3.0, 1.0], dtype=rgb.dtype, device=rgb.device).view(3, 1, 1)
    k = (n + sixths + 6 * turns) % 6
    return value - chroma * torch.minimum(k, 4 - k).clamp(0, 1)
