"""The straight path between two states, and the noise put on it (the design's section 1).

X_u = (1 - (1 - sigma) u) X_t + u X_{t+1},   X~ = X_u + eps,   eps ~ N(0, s^2 I)
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PathSample:
    """Where on the path the components are trained.

    noisy: X~ [b, K*C, h, w]; noise: eps, of the same shape; time: u [b]; velocity: v [b, C, h, w], of the last frame.
    """

    noisy: Tensor
    noise: Tensor
    time: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class Draws:
    """The random numbers of one batch: time u [b] in [0, 1), and a standard normal [b, K*C, h, w]."""

    time: Tensor
    normal: Tensor


def stack(frames: Tensor) -> Tensor:
    """[b, K, C, h, w] -> the state [b, K*C, h, w]."""
    return frames.flatten(1, 2)


def draw(generator: torch.Generator, total: int, state_shape: tuple[int, ...], zero_share: float) -> Draws:
    """Draws for a batch of `total` states of shape [K*C, h, w]; a share of the times is exactly 0.

    Workers that split a batch draw all of it from one generator and keep their slice, so that what is
    learnt does not depend on how many they are.
    """
    device = generator.device
    time = torch.rand(total, generator=generator, device=device)
    at_zero = torch.rand(total, generator=generator, device=device) < zero_share
    normal = torch.randn(total, *state_shape, generator=generator, device=device)
    return Draws(torch.where(at_zero, torch.zeros_like(time), time), normal)


def sample_path(window: Tensor, draws: Draws, noise_std: float, sigma: float) -> PathSample:
    """A noisy point on the path of each window of K + 1 latents, [b, K+1, C, h, w]."""
    start, end = stack(window[:, :-1]), stack(window[:, 1:])
    u = draws.time[:, None, None, None]
    noise = noise_std * draws.normal
    noisy = (1 - (1 - sigma) * u) * start + u * end + noise
    return PathSample(noisy, noise, draws.time, velocity(window, sigma))


def velocity(window: Tensor, sigma: float) -> Tensor:
    """v = z_{t+1} - (1 - sigma) z_t, [b, C, h, w]: what (X_{t+1} - (1-sigma) X_u) / (1 - (1-sigma) u) comes to."""
    return window[:, -1] - (1 - sigma) * window[:, -2]
