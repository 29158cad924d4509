"""The straight path between two states, with noise injection; `raypipe.sde` defines the symbols.

X_u = (1 - (1 - sigma) u) X_t + u X_{t+1},   X~ = X_u + eps,   eps ~ N(0, s^2 I)
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor


@dataclass(frozen=True)
class PathSample:
    """Training samples on the path.

    noisy: X~ [b, K*C, h, w]; noise: eps [b, K*C, h, w]; time: u [b]; velocity: v of the last frame, [b, C, h, w].
    """

    noisy: Tensor
    noise: Tensor
    time: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch. time: u [b] in [0, 1); normal: standard normals [b, K*C, h, w]."""

    time: Tensor
    normal: Tensor

    def part(self, offset: int, count: int, device: torch.device) -> "Draws":
        """The draws of `count` windows from number `offset` of the batch, on a device."""
        mine = slice(offset, offset + count)
        return Draws(self.time[mine].to(device), self.normal[mine].to(device))


def stack(frames: Tensor) -> Tensor:
    """Concatenate latents [b, K, C, h, w] along the channels to the state [b, K*C, h, w]."""
    return rearrange(frames, "b k c h w -> b (k c) h w")


def draw(generator: torch.Generator, total: int, state_shape: tuple[int, ...], zero_share: float) -> Draws:
    """Draw the random numbers for a global batch of `total` states of shape [K*C, h, w].

    zero_share: probability that a time u is exactly 0. Each worker draws the global batch from the same generator and
    keeps its slice, so that training does not depend on the number of workers.
    """
    device = generator.device
    time = torch.rand(total, generator=generator, device=device)
    at_zero = torch.rand(total, generator=generator, device=device) < zero_share
    normal = torch.randn(total, *state_shape, generator=generator, device=device)
    return Draws(torch.where(at_zero, torch.zeros_like(time), time), normal)


def sample_path(window: Tensor, draws: Draws, noise_std: float, sigma: float) -> PathSample:
    """A noisy point on the path of each window of K + 1 latents, [b, K+1, C, h, w].

    noise_std: s; sigma: see `raypipe.sde`.
    """
    start, end = stack(window[:, :-1]), stack(window[:, 1:])
    u = draws.time[:, None, None, None]
    noise = noise_std * draws.normal
    noisy = (1 - (1 - sigma) * u) * start + u * end + noise
    return PathSample(noisy, noise, draws.time, velocity(window, sigma))


def velocity(window: Tensor, sigma: float) -> Tensor:
    """v = z_{t+1} - (1 - sigma) z_t, [b, C, h, w], of each window of K + 1 latents, [b, K+1, C, h, w].

    This is the last frame of (X_{t+1} - (1-sigma) X_u) / (1 - (1-sigma) u), without the division.
    """
    return window[:, -1] - (1 - sigma) * window[:, -2]
