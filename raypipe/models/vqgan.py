"""The VQGANs of latent diffusion (arXiv 2112.10752), with the parameter names of its class `VQModel`."""

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from raypipe.models.quantizer import Quantizer


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Residual block of two (GroupNorm, SiLU, 3x3 convolution) layers."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = hidden + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)
        return out


class Attention(nn.Module):
    """Residual single-head self-attention over all pixels, with 1x1 convolutions as projections."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (rearrange(layer(normed), "b c h w -> b (h w) c") for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(rearrange(mixed, "b (h w) c -> b c h w", h=x.shape[2]))
        return out


class Middle(nn.Module):
    """The layers at the lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Downsample(nn.Module):
    """Halve height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))  # pads the right and bottom only, as VQModel does
        return out


class Upsample(nn.Module):
    """Double height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if `attention`, then `resample` if given."""

    def __init__(
        self, in_channels: int, channels: int, num_blocks: int, attention: bool, resample: type[nn.Module] | None
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(channels if i else in_channels, channels) for i in range(num_blocks))
        self.attn = nn.ModuleList(Attention(channels) for _ in range(num_blocks if attention else 0))
        if resample is not None:
            setattr(self, resample.__name__.lower(), resample(channels))

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Encoder(nn.Module):
    """Frames [b, 3, H, W] -> features [b, z_channels, H/f, W/f], with f = 2^(len(widths) - 1)."""

    def __init__(self, widths: Sequence[int], z_channels: int, num_blocks: int, attention: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(widths[max(i - 1, 0)], width, num_blocks, i in attention, Downsample if i < len(widths) - 1 else None)
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.conv_in(frames)
        for level in self.down:
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x))))
        return out


class Decoder(nn.Module):
    """Features [b, z_channels, h, w] -> frames [b, 3, f h, f w], with f = 2^(len(widths) - 1)."""

    def __init__(self, widths: Sequence[int], z_channels: int, num_blocks: int, attention: Sequence[int]) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(
                widths[min(i + 1, len(widths) - 1)], width, num_blocks + 1, i in attention, Upsample if i > 0 else None
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for i in reversed(range(len(self.up))):  # level 0 is the finest
            x = self.up[i](x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


class VQGAN(nn.Module):
    """VQGAN for frames [b, 3, H, W], latents [b, channels, H/f, W/f], with f = 2^(len(ch_mult) - 1).

    attention_levels: indices into `ch_mult` of the levels with attention. The configurations of the reference code
    state a resolution instead, which corresponds to level 2 for f8_small, 3 for f8 and 4 for f16.
    """

    def __init__(
        self,
        num_embeddings: int = 16384,
        channels: int = 4,
        z_channels: int = 4,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (3,),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.downsampling = 2 ** (len(ch_mult) - 1)
        self.arguments = {
            "num_embeddings": num_embeddings,
            "channels": channels,
            "z_channels": z_channels,
            "ch": ch,
            "ch_mult": list(ch_mult),
            "num_res_blocks": num_res_blocks,
            "attention_levels": list(attention_levels),
        }
        widths = [ch * multiple for multiple in ch_mult]
        self.encoder = Encoder(widths, z_channels, num_res_blocks, attention_levels)
        self.decoder = Decoder(widths, z_channels, num_res_blocks, attention_levels)
        self.quantize = Quantizer(num_embeddings, channels)
        self.quant_conv = nn.Conv2d(z_channels, channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, z_channels, 1)

    @property
    def quantizer(self) -> Quantizer:
        return self.quantize

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [b, 3, H, W] in [-1, 1] -> latents before quantization [b, channels, h, w]."""
        out: Tensor = self.quant_conv(self.encoder(frames))
        return out

    def decode(self, quantized: Tensor) -> Tensor:
        """Quantized latents [b, channels, h, w] -> frames [b, 3, H, W], not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(quantized))
        return out
