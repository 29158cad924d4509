"""The VQ-VAE of the reference code (`type: ours` in its configs), with the parameter names of released checkpoints."""

from itertools import pairwise

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from raypipe.models.attention import SelfAttention
from raypipe.models.quantizer import Quantizer

WIDTHS = (32, 64, 128, 256)
"""Channels at each resolution of the encoder."""
SLOPE = 0.2
"""Negative slope of leaky ReLU."""


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    """Residual block of two convolutions. pool: factor by which height and width are reduced, 1 or 2."""

    def __init__(self, in_channels: int, out_channels: int, pool: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = group_norm(out_channels)
        self.pool = nn.AvgPool2d(pool) if pool > 1 else nn.Identity()
        self.downsample = (
            nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), self.pool, group_norm(out_channels))
            if pool > 1 or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self.bn1(self.pool(self.conv1(x))), SLOPE)
        return F.leaky_relu(self.bn2(self.conv2(hidden)) + self.downsample(x), SLOPE)


class Middle(nn.Module):
    """The layers at the lowest resolution: residual block, single-head self-attention with skip, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pre_attn_residual = Residual(channels, channels)
        self.attn_norm = group_norm(channels)
        self.attn = SelfAttention(channels, num_heads=1)
        self.post_attn_residual = Residual(channels, channels)

    def middle(self, x: Tensor) -> Tensor:
        x = self.pre_attn_residual(x)
        mixed = self.attn(rearrange(self.attn_norm(x), "b c h w -> b h w c"))
        out: Tensor = self.post_attn_residual(x + rearrange(mixed, "b h w c -> b c h w"))
        return out


class Encoder(Middle):
    """Frames [b, 3, H, W] -> latents before quantization [b, channels, H/8, W/8]."""

    def __init__(self, channels: int) -> None:
        super().__init__(WIDTHS[-1])
        self.conv_in = nn.Conv2d(3, WIDTHS[0], 3, padding=1)
        self.residuals = nn.Sequential(*(Residual(a, b, pool=2) for a, b in pairwise(WIDTHS)))
        self.out_norm = group_norm(WIDTHS[-1])
        self.out_conv = nn.Conv2d(WIDTHS[-1], channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.middle(self.residuals(self.conv_in(frames)))
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))), SLOPE)


class Decoder(Middle):
    """Quantized latents [b, channels, h, w] -> frames [b, 3, 8h, 8w] in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        widths = WIDTHS[::-1]
        super().__init__(widths[0])
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.residuals = nn.Sequential(*(nn.Sequential(Residual(a, b), Upsample(b)) for a, b in pairwise(widths)))
        self.out_norm = group_norm(widths[-1])
        self.out_conv = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.residuals(self.middle(self.conv_in(latents)))
        return self.out_conv(F.silu(self.out_norm(x))).tanh()  # type: ignore[no-any-return]


class VQVAE(nn.Module):
    """VQ-VAE for frames [b, 3, H, W], latents [b, channels, H/8, W/8]; H and W are multiples of 8."""

    downsampling = 8

    def __init__(self, num_embeddings: int = 8192, channels: int = 4) -> None:
        super().__init__()
        self.channels = channels
        self.arguments = {"num_embeddings": num_embeddings, "channels": channels}
        self.encoder = Encoder(channels)
        self.vector_quantizer = Quantizer(num_embeddings, channels)
        self.decoder = Decoder(channels)

    @property
    def quantizer(self) -> Quantizer:
        return self.vector_quantizer

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [b, 3, H, W] in [-1, 1] -> latents before quantization [b, channels, H/8, W/8]."""
        out: Tensor = self.encoder(frames)
        return out

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantized latents [b, channels, h, w] -> frames [b, 3, 8h, 8w] in [-1, 1]."""
        out: Tensor = self.decoder(quantized)
        return out
