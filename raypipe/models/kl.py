"""The KL autoencoder of latent diffusion (arXiv 2112.10752), such as `sd-vae-ft-mse`.

Parameters are named as in `AutoencoderKL` of diffusers 0.15 or later. Older versions call the attention layers
`query`, `key`, `value` and `proj_attn`, and latent diffusion itself has other names; `raypipe.checkpoint.naming`
translates them on import.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class ResnetBlock(nn.Module):
    """Residual block of two (GroupNorm, SiLU, 3x3 convolution) layers."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))
        return out


class Attention(nn.Module):
    """Residual single-head self-attention over all pixels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.group_norm(x), "b c h w -> b (h w) c")
        mixed = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        out: Tensor = x + rearrange(self.to_out[0](mixed), "b (h w) c -> b c h w", h=x.shape[2])
        return out


class Middle(nn.Module):
    """The layers at the lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class Resample(nn.Module):
    """Halve height and width (stride 2, padded at the right and bottom only) or double them (stride 1)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=1 if stride == 1 else 0)

    def forward(self, x: Tensor) -> Tensor:
        double = self.conv.stride[0] == 1
        out: Tensor = self.conv(
            F.interpolate(x, scale_factor=2.0, mode="nearest") if double else F.pad(x, (0, 1, 0, 1))
        )
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if `attention`.

    resampler: "downsamplers" or "upsamplers" after them, or None.
    """

    def __init__(
        self, in_channels: int, channels: int, num_blocks: int, groups: int, attention: bool, resampler: str | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels if i else in_channels, channels, groups) for i in range(num_blocks)
        )
        self.attentions = nn.ModuleList(Attention(channels, groups) for _ in range(num_blocks if attention else 0))
        self._resampler = resampler
        if resampler is not None:
            stride = 2 if resampler == "downsamplers" else 1
            setattr(self, resampler, nn.ModuleList([Resample(channels, stride)]))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.resnets):
            x = block(x)
            if self.attentions:
                x = self.attentions[i](x)
        return x if self._resampler is None else getattr(self, self._resampler)[0](x)


class Encoder(nn.Module):
    """Frames [b, 3, H, W] -> features [b, out_channels, H/f, W/f], with f = 2^(len(widths) - 1)."""

    def __init__(
        self, widths: Sequence[int], out_channels: int, num_blocks: int, groups: int, attention: Sequence[int]
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)], width, num_blocks, groups, i in attention, "downsamplers" if i < last else None
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.conv_in(frames)
        for level in self.down_blocks:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))
        return out


class Decoder(nn.Module):
    """Features [b, in_channels, h, w] -> frames [b, 3, f h, f w]. widths: in the order of the encoder."""

    def __init__(
        self, widths: Sequence[int], in_channels: int, num_blocks: int, groups: int, attention: Sequence[int]
    ) -> None:
        super().__init__()
        widths, last = list(reversed(widths)), len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(
                widths[max(i - 1, 0)],
                width,
                num_blocks + 1,
                groups,
                last - i in attention,
                "upsamplers" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


class AutoencoderKL(nn.Module):
    """KL autoencoder for frames [b, 3, H, W], latents [b, channels, H/f, W/f], with f = 2^(len(widths) - 1).

    attention_levels: indices into `widths` of the levels with attention. z_channels: channels between the encoder (half
    of them) and quant_conv; None: `channels`. The defaults are those of sd-vae-ft-mse.
    """

    quantizer = None

    def __init__(
        self,
        channels: int = 4,
        widths: Sequence[int] = (128, 256, 512, 512),
        num_res_blocks: int = 2,
        groups: int = 32,
        attention_levels: Sequence[int] = (),
        z_channels: int | None = None,
    ) -> None:
        super().__init__()
        z = z_channels or channels
        self.channels = channels
        self.downsampling = 2 ** (len(widths) - 1)
        self.arguments: dict[str, Any] = {
            "channels": channels,
            "widths": list(widths),
            "num_res_blocks": num_res_blocks,
            "groups": groups,
            "attention_levels": list(attention_levels),
            "z_channels": z,
        }
        self.encoder = Encoder(widths, 2 * z, num_res_blocks, groups, attention_levels)
        self.decoder = Decoder(widths, z, num_res_blocks, groups, attention_levels)
        self.quant_conv = nn.Conv2d(2 * z, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, z, 1)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [b, 3, H, W] in [-1, 1] -> mean of the posterior, [b, channels, h, w].

        As in the reference code, it is not multiplied by the factor 0.18215 of Stable Diffusion. The reference code
        samples from the posterior, whose standard deviation is small compared to the injected noise.
        """
        mean, _ = torch.chunk(self.quant_conv(self.encoder(frames)), 2, dim=1)
        return mean

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, channels, h, w] -> frames [b, 3, H, W], not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return out
