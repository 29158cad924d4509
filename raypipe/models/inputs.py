"""Inputs of a backbone beside the state: the position of a pixel, and the time u within the frame interval."""

import torch
from torch import Tensor, nn

from raypipe.common.errors import UserError

MAX_SIZE = 512
"""Largest height and width of a latent frame: the number of row and of column embeddings."""


class PositionEncoding(nn.Module):
    """Learned embeddings of column and row, dim / 2 features each, concatenated."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.col_embed = nn.Embedding(MAX_SIZE, dim // 2)
        self.row_embed = nn.Embedding(MAX_SIZE, dim // 2)
        nn.init.uniform_(self.col_embed.weight)
        nn.init.uniform_(self.row_embed.weight)

    def forward(self, height: int, width: int) -> Tensor:
        """The embeddings of all pixels, [height, width, dim]. Raises UserError above MAX_SIZE."""
        if max(height, width) > MAX_SIZE:
            raise UserError(f"latent frames: must be at most {MAX_SIZE} high and wide, not {height} x {width}")
        columns = self.col_embed.weight[:width].expand(height, -1, -1)
        rows = self.row_embed.weight[:height, None].expand(-1, width, -1)
        return torch.cat([columns, rows], dim=-1)


def check_time(x: Tensor, u: Tensor | None) -> Tensor:
    """u [b] for states x [b, ...]. Raises UserError if it is missing or has another shape."""
    if u is None or u.shape != x.shape[:1]:
        found = "missing" if u is None else f"of shape {list(u.shape)}"
        raise UserError(f"u: a network with time_input needs one value per state, [{len(x)}], but it is {found}")
    return u
