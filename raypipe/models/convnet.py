"""A convolutional backbone: residual blocks, arranged as a small U-Net on larger latents."""

import torch.nn.functional as F
from torch import Tensor, nn

from raypipe.models.inputs import PositionEncoding, check_time
from raypipe.models.residual import ResidualBlock, group_norm

HALVED_FROM = 16
"""Smallest height and width at which the middle blocks run at half the resolution."""


class ConvNet(nn.Module):
    """Residual blocks over a latent frame: `depth` before the middle, `mid_depth` in the middle, `depth` after it.

    On latents from 16x16, the middle runs at half the resolution and its result is added to what went in, as in a
    U-Net. The parameters do not depend on the size of the latents. inner_dim: number of channels. time_input: every
    block sees u.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        inner_dim: int,
        depth: int,
        mid_depth: int,
        dropout: float = 0.0,
        time_input: bool = False,
    ) -> None:
        super().__init__()

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(ResidualBlock(inner_dim, time_input=time_input, dropout=dropout) for _ in range(count))

        self.time_input = time_input
        self.conv_in = nn.Conv2d(in_channels, inner_dim, 3, padding=1)
        self.position_encoding = PositionEncoding(inner_dim)
        for table in (self.position_encoding.col_embed, self.position_encoding.row_embed):
            nn.init.zeros_(table.weight)
        self.in_blocks, self.mid_blocks, self.out_blocks = blocks(depth), blocks(mid_depth), blocks(depth)
        self.norm = group_norm(inner_dim)
        self.conv_out = nn.Conv2d(inner_dim, out_channels, 3, padding=1)

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """State [b, in_channels, h, w] and time u [b] within the frame interval -> [b, out_channels, h, w].

        Raises UserError if `time_input` is set and `u` is missing or not of shape [b].
        """
        if self.time_input:
            check_time(x, u)
        height, width = x.shape[-2:]
        hidden = self.conv_in(x) + self.position_encoding(height, width).permute(2, 0, 1)
        for block in self.in_blocks:
            hidden = block(hidden, u)
        halve = min(height, width) >= HALVED_FROM
        middle = F.avg_pool2d(hidden, 2, ceil_mode=True) if halve else hidden
        for block in self.mid_blocks:
            middle = block(middle, u)
        hidden = hidden + F.interpolate(middle, size=(height, width)) if halve else middle
        for block in self.out_blocks:
            hidden = block(hidden, u)
        out: Tensor = self.conv_out(F.silu(self.norm(hidden)))
        return out
