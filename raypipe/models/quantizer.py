"""Vector quantization of the pixels of a latent (van den Oord et al. 2017, arXiv 1711.00937)."""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

COMMITMENT = 0.25
"""Weight of the codebook term of the loss, as in the reference code. The paper weights the commitment term instead."""


class Quantized(NamedTuple):
    """Quantized latents [b, channels, h, w], and the loss of the quantizer (a scalar)."""

    latents: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """Quantizer with a codebook of `num_embeddings` vectors, [num_embeddings, channels]."""

    def __init__(self, num_embeddings: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, channels)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)

    def forward(self, z: Tensor) -> Quantized:
        """Replace each pixel of z, [b, channels, h, w], by its nearest code q, with a straight-through gradient.

        The loss is mean((sg[q] - z)^2) + COMMITMENT mean((q - sg[z])^2), where sg is the stop-gradient.
        """
        b, _, h, w = z.shape
        nearest = self._nearest(rearrange(z.detach(), "b c h w -> (b h w) c"))
        codes = rearrange(self.embedding(nearest), "(b h w) c -> b c h w", b=b, h=h, w=w)
        loss = (codes.detach() - z).square().mean() + COMMITMENT * (codes - z.detach()).square().mean()
        return Quantized(z + (codes - z).detach(), loss)

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        """Index [n] of the nearest code of each vector [n, channels], in chunks that limit the memory for distances."""
        codes = self.embedding.weight
        norms = codes.square().sum(dim=1)
        return torch.cat(
            [torch.addmm(norms, part, codes.T, alpha=-2).argmin(dim=1) for part in torch.split(vectors, 2048)]
        )
