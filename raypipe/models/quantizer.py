"""Vector quantization (van den Oord et al. 2017, arXiv 1711.00937) of latent pixels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

COMMITMENT = 0.25
"""Weight of the pull of the codes, against that of the latents, as the published loss has it."""


class Quantized(NamedTuple):
    """Latents at their nearest codes, [b, channels, h, w], and the quantizer's loss (a scalar)."""

    latents: Tensor
    loss: Tensor


class Quantizer(nn.Module):
    """A codebook of `num_embeddings` vectors of `channels`."""

    def __init__(self, num_embeddings: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, channels)
        nn.init.uniform_(self.embedding.weight, -1 / num_embeddings, 1 / num_embeddings)

    def forward(self, z: Tensor) -> Quantized:
        """[b, channels, h, w] -> the nearest codes; gradients pass straight through to `z`.

        The loss is mean((sg[q] - z)^2) + 0.25 mean((q - sg[z])^2), sg being stop-gradient.
        """
        vectors = z.movedim(1, -1)
        codes = self.embedding(self._nearest(vectors.reshape(-1, z.shape[1]).detach())).view(vectors.shape)
        codes = codes.movedim(-1, 1)
        loss = (codes.detach() - z).square().mean() + COMMITMENT * (codes - z.detach()).square().mean()
        return Quantized(z + (codes - z).detach(), loss)

    @torch.no_grad()
    def _nearest(self, vectors: Tensor) -> Tensor:
        """Index of the nearest code of each vector [n, channels]; chunks keep the distances' table small."""
        codes = self.embedding.weight
        norms = codes.square().sum(dim=1)
        return torch.cat(
            [torch.addmm(norms, part, codes.T, alpha=-2).argmin(dim=1) for part in torch.split(vectors, 2048)]
        )
