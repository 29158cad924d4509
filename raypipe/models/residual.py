"""The residual block of the small autoencoder and of the convolutional backbone."""

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Residual block of two (GroupNorm, SiLU, 3x3 convolution) layers; initialized to the identity.

    time_input: a linear function of the time u is added between the two layers. dropout: probability, before the second
    convolution.
    """

    def __init__(self, channels: int, *, time_input: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Linear(1, channels) if time_input else None
        self.norm2 = group_norm(channels)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(cast(Tensor, self.conv2.bias))

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """[b, channels, h, w], and u [b] if `time_input` is set -> [b, channels, h, w]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None:
            assert u is not None
            hidden = hidden + self.time(u[:, None])[:, :, None, None]
        out: Tensor = x + self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        return out


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 8 groups, or a single one if 8 does not divide the number of channels."""
    return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
