"""V-JEPA (Bardes et al. 2024) and the attentive pooler of its probe: the network of JEDi, with the published names."""

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 1280
"""Number of features of a clip, from ViT-H."""
HEADS, PATCH, TUBELET = 16, 16, 2
SIZE = 224
"""Height and width of the frames that the network takes."""
GRID = (8, SIZE // PATCH, SIZE // PATCH)
"""Positions of the tokens of the clips in training, of 16 frames; for other clips, their embedding is interpolated."""


class VJepa(nn.Module):
    """Clips [n, 3, T, 224, 224], normalized as for ImageNet, to features [n, width]; T is at least 2."""

    def __init__(self, width: int = WIDTH, depth: int = 32) -> None:
        super().__init__()
        self.encoder = _Encoder(width, depth)
        self.pooler = _Pooler(width)

    def forward(self, clips: Tensor) -> Tensor:
        found: Tensor = self.pooler(self.encoder(clips))
        return found


class _Encoder(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID[0] * GRID[1] * GRID[2], width))
        patch = (TUBELET, PATCH, PATCH)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, width, patch, patch)})
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, clips: Tensor) -> Tensor:
        x: Tensor = self.patch_embed["proj"](clips)
        position = self.pos_embed.unflatten(1, GRID).movedim(-1, 1)
        if position.shape != x.shape:
            position = functional.interpolate(position, x.shape[2:], mode="trilinear")
        x = self.norm(self.blocks((x + position).flatten(2).mT))
        return x


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = _Attention(width), _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class _Pooler(nn.Module):
    """One learned query that attends to all tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.cross_attention_block = _CrossBlock(width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.cross_attention_block(self.query_tokens.expand(len(x), -1, -1), x)
        return found[:, 0]


class _CrossBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.xattn, self.mlp = _CrossAttention(width), _Mlp(width)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        query = query + self.xattn(query, self.norm1(x))
        query = query + self.mlp(self.norm2(query))
        return query


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.proj(_attend(*self.qkv(x).chunk(3, -1)))
        return found


class _CrossAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.proj(_attend(self.q(query), *self.kv(x).chunk(2, -1)))
        return found


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return found


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = [x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (query, key, value)]
    return functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
