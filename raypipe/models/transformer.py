"""The backbone of the reference network: a U-shaped transformer over the pixels of a latent frame.

Parameters are named as in the reference network. Released checkpoints load strictly, except for `time_projection`,
which the reference network does not use and which does not exist here.
"""

from typing import cast

import torch
import torch.nn.functional as F
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from raypipe.models.attention import Linear, SelfAttention
from raypipe.models.inputs import PositionEncoding, check_time


class Dropout(nn.Dropout):
    """`nn.Dropout`, three times as fast on a CPU, where its random numbers take longer than all normalization layers.

    On a CPU, each random 64-bit integer serves four elements, with 16 bits each; so the dropout probability is rounded
    to a multiple of 2^-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        count = x.numel()
        bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = bits[:count].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


class Block(nn.Module):
    """A pre-norm transformer block: `nn.TransformerEncoderLayer(norm_first=True, activation="gelu")` for images."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, dropout)
        self.linear1 = Linear(dim, 4 * dim)
        self.linear2 = Linear(4 * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[b, h, w, dim] -> [b, h, w, dim]."""
        x = x + self.dropout(self.self_attn(self.norm1(x)))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(x))))
        out: Tensor = x + self.dropout(self.linear2(hidden))
        return out


class Transformer(nn.Module):
    """U-shaped transformer whose tokens are the pixels of the state.

    The output of each block before the middle is also an input of the corresponding block after it, as in a U-Net.
    time_input: add one Linear(1, inner_dim) of u to all tokens.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        inner_dim: int,
        depth: int,
        mid_depth: int,
        num_heads: int,
        out_norm: str = "ln",
        dropout: float = 0.0,
        time_input: bool = False,
    ) -> None:
        super().__init__()

        def block() -> Block:
            return Block(inner_dim, num_heads, dropout)

        self.project_in = nn.Sequential(Rearrange("b c h w -> b h w c"), Linear(in_channels, inner_dim))
        self.position_encoding = PositionEncoding(inner_dim)
        self.time_input = nn.Linear(1, inner_dim) if time_input else None
        self.in_blocks = nn.ModuleList(block() for _ in range(depth))
        self.mid_blocks = nn.ModuleList(block() for _ in range(mid_depth))
        self.out_blocks = nn.ModuleList(
            nn.ModuleList([Linear(2 * inner_dim, inner_dim), block()]) for _ in range(depth)
        )
        to_image = Rearrange("b h w c -> b c h w")
        linear = Linear(inner_dim, inner_dim)
        conv = nn.Conv2d(inner_dim, out_channels, kernel_size=3, padding=1)
        self.project_out = (
            nn.Sequential(linear, nn.GELU(), nn.LayerNorm(inner_dim), to_image, conv)
            if out_norm == "ln"
            else nn.Sequential(linear, to_image, nn.GELU(), nn.BatchNorm2d(inner_dim), conv)
        )

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """State [b, in_channels, h, w] and time u [b] within the frame interval -> [b, out_channels, h, w].

        Raises UserError if `time_input` is set and `u` is missing or not of shape [b].
        """
        height, width = x.shape[-2:]
        tokens: Tensor = self.project_in(x) + self.position_encoding(height, width)
        if self.time_input is not None:
            tokens = tokens + self.time_input(check_time(x, u)[:, None])[:, None, None]
        skips: list[Tensor] = []
        for block in self.in_blocks:
            tokens = block(tokens)
            skips.append(tokens)
        for block in self.mid_blocks:
            tokens = block(tokens)
        for pair in self.out_blocks:
            merge, block = cast(nn.ModuleList, pair)
            tokens = block(merge(torch.cat([skips.pop(), tokens], dim=-1)))
        out: Tensor = self.project_out(tokens)
        return out
