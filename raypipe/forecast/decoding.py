"""Decoding of forecasts with the help of the last given frame, of which an autoencoder loses a part.

x is the last given frame, D the decoder and z the latent of x. A forecast z' becomes one of the frames

    plain       D(z')
    anchored    D(z') + c,  c = x - D(z): what the autoencoder has lost of x is added to every frame
    fading      D(z') + exp(-a / 8) c, a frame intervals after x
    copied-s    D(z') + w (x - D(z')),  w = exp(-(m / s)^2)

clipped to [-1, 1]. m is |D(z') - D(z)| of the channel that differs most, averaged over 3 x 3 pixels. So `copied`
repeats the pixels that the forecast leaves as they are, and paints those that it changes; s is the size of a change
that counts, where the range of a pixel is 2.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from raypipe.common.device import autocast, choose_device
from raypipe.models.autoencoder import Autoencoder

PLAIN = "plain"
BATCH = 64
"""Number of frames that the autoencoder decodes at once."""
FADE = 8.0
"""Number of frame intervals in which the correction of `fading` falls to 1/e."""


@dataclass(frozen=True)
class LastFrame:
    """The last given frame of each forecast, and its reconstruction by the autoencoder; both [..., 3, H, W]."""

    frame: Tensor
    decoded: Tensor


def _copied(scale: float) -> Callable[[Tensor, LastFrame, Tensor], Tensor]:
    def copied(decoded: Tensor, last: LastFrame, age: Tensor) -> Tensor:
        changed = (decoded - last.decoded).abs().amax(-3, keepdim=True)
        near = functional.avg_pool2d(changed.flatten(0, -4), 3, 1, 1, count_include_pad=False).view_as(changed)
        return decoded + torch.exp(-((near / scale) ** 2)) * (last.frame - decoded)

    return copied


DECODINGS: Mapping[str, Callable[[Tensor, LastFrame, Tensor], Tensor]] = {
    PLAIN: lambda decoded, last, age: decoded,
    "anchored": lambda decoded, last, age: decoded + (last.frame - last.decoded),
    "fading": lambda decoded, last, age: decoded + torch.exp(-age / FADE) * (last.frame - last.decoded),
    **{f"copied-{scale:g}": _copied(scale) for scale in (0.1, 0.2, 0.3, 0.4, 0.6, 0.9)},
}
"""By name: (D(z') [..., T, 3, H, W], last frame that broadcasts to it, age [T, 1, 1, 1]) -> frames, not yet clipped."""


def decodings(setting: str) -> tuple[str, ...]:
    """Names of the decodings among which `evaluation.decoding` lets an evaluation choose."""
    return tuple(name for name in DECODINGS if setting in ("best", name.split("-")[0]))


def decode(autoencoder: Autoencoder, latents: Tensor) -> Tensor:
    """D: latents [..., C, h, w] to frames [..., 3, H, W] in [-1, 1], float32 on the CPU, in batches of `BATCH`."""
    device = choose_device()
    with torch.no_grad(), autocast(device):
        parts = latents.flatten(0, -4).split(BATCH)
        made = torch.cat([autoencoder.decode(part.to(device)).float().cpu() for part in parts])
    return made.view(*latents.shape[:-3], *made.shape[1:])


def frames_of(decoding: str, decoded: Tensor, last: LastFrame, interpolate: int = 1) -> Tensor:
    """The frames of forecasts, [..., M, T, 3, H, W] in [-1, 1], from what the autoencoder makes of their latents.

    decoding: a key of DECODINGS. decoded: D(z'), [..., M, T, 3, H, W], from `decode`. last: [..., 3, H, W].
    interpolate: number of frames per frame interval; the first frame is one of them after the last given one.
    """
    age = torch.arange(1, decoded.shape[-4] + 1).view(-1, 1, 1, 1) / interpolate
    one = LastFrame(last.frame[..., None, None, :, :, :], last.decoded[..., None, None, :, :, :])
    return DECODINGS[decoding](decoded, one, age).clamp(-1, 1)
