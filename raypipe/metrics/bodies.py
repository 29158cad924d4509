"""How many bodies of the demo a forecast still shows: a measure of shape, to which a mean error per pixel is blind.

A body of the demo has one hue, which differs from those of the others, and is brighter than the background.
"""

import torch
from torch import Tensor

BRIGHT, VIVID = 0.4, 0.3
"""Least value and saturation, from 0 to 1, of a pixel that belongs to a body."""
NEAR = 0.09
"""Largest distance between the hue of a pixel and that of its body, in turns of the color circle."""
LEAST = 0.01
"""Smallest area of a body, as a fraction of the frame."""
KEPT = (0.4, 2.5)
"""Area of a body that counts as kept, relative to its area in the last given frame."""


def kept_bodies(prediction: Tensor, last: Tensor) -> tuple[Tensor, int]:
    """The share of the bodies in the last given frame that a forecast shows with 0.4 to 2.5 times their area there.

    prediction: [..., 3, H, W]; last: [3, H, W]; values in [-1, 1]. Returns the share, [...], and the number of bodies;
    without any, the share is 0.
    """
    found = _hues(last)
    if not found:
        return prediction.new_zeros(prediction.shape[:-3]), 0
    shares = []
    for hue in found:
        ratio = _area(prediction, hue) / _area(last, hue)
        shares.append(((ratio >= KEPT[0]) & (ratio <= KEPT[1])).float())
    return torch.stack(shares).mean(0), len(found)


def _hues(frame: Tensor) -> list[float]:
    """The hues of the bodies in a frame, [3, H, W], the largest body first."""
    hue, inside = _hue(frame)
    left = hue[inside]
    found: list[float] = []
    while len(left) >= LEAST * inside.numel():
        counts = torch.histc(left, 60, 0, 1)
        wide = counts + counts.roll(1) + counts.roll(-1)  # the pixels of a body spread over neighboring bins
        peak = (float(wide.argmax()) + 0.5) / 60
        near = _distance(left, peak) <= NEAR
        if near.sum() >= LEAST * inside.numel():
            found.append(peak)
        left = left[~near] if near.any() else left[:0]
    return found


def _area(frames: Tensor, hue: float) -> Tensor:
    """Number of pixels of the body with a hue, [...], in frames [..., 3, H, W]."""
    hues, inside = _hue(frames)
    return (inside & (_distance(hues, hue) <= NEAR)).sum((-2, -1)).float()


def _distance(hues: Tensor, hue: float) -> Tensor:
    """Distance on the color circle, at most 1/2."""
    apart = (hues - hue).abs()
    return torch.minimum(apart, 1 - apart)


def _hue(frames: Tensor) -> tuple[Tensor, Tensor]:
    """The hue of each pixel, from 0 to 1, and whether it belongs to a body, [..., H, W]."""
    color = ((frames.clamp(-1, 1) + 1) / 2).movedim(-3, 0)
    red, green, blue = color
    high, low = color.amax(0), color.amin(0)
    chroma = (high - low).clamp(min=1e-6)
    sixth = torch.where(
        high == red,
        ((green - blue) / chroma) % 6,
        torch.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return sixth / 6, (high > BRIGHT) & (chroma / high.clamp(min=1e-6) > VIVID)
