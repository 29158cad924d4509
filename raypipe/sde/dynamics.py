"""The SDE of the state: dX = [F(X) + alpha d(X)] du + beta G(X) dW (Ito, diagonal)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raypipe.sde.solvers import Solver

Field = Callable[[Tensor, Tensor], Tensor]
"""(state [b, K*C, h, w], u [b]) -> [b, C, h, w] (flow, diffusion) or [b, K*C, h, w] (denoiser)."""


@dataclass(frozen=True)
class Dynamics:
    """The three components at work. Without a diffusion the forecast is deterministic."""

    flow: Field
    denoiser: Field | None = None
    diffusion: Field | None = None
    alpha: float = 1.0
    beta: float = 1.0

    @property
    def stochastic(self) -> bool:
        return self.diffusion is not None and self.beta > 0

    def evaluations(self, solver: Solver) -> int:
        """Network calls that one step of the solver costs."""
        learnt = self.stochastic and not isinstance(self.diffusion, ConstantDiffusion)
        drift = 1 + (self.denoiser is not None and self.alpha > 0)
        return solver.drifts * drift + solver.noises * learnt

    def interval(self, start: Tensor) -> "Interval":
        """The dynamics inside the frame interval that begins at the state `start`."""
        return Interval(self, start)


class Interval:
    """Drift and noise inside one frame interval, u from 0 to 1.

    The older frames move along their known straight lines, z_{i+1} - z_i, which the interval's first
    state fixes; the last frame moves along the flow.
    """

    def __init__(self, dynamics: Dynamics, start: Tensor) -> None:
        self._dynamics = dynamics
        self._start = start

    def drift(self, x: Tensor, u: float) -> Tensor:
        """F(X) + alpha d(X), [b, K*C, h, w]."""
        dynamics = self._dynamics
        time = torch.full((len(x),), u, device=x.device, dtype=x.dtype)
        ahead = dynamics.flow(x, time)
        channels = ahead.shape[1]
        drift = torch.cat([self._start[:, channels:] - self._start[:, :-channels], ahead], dim=1)
        if dynamics.denoiser is not None and dynamics.alpha > 0:
            drift = drift + dynamics.alpha * dynamics.denoiser(x, time)
        return drift

    def noise(self, x: Tensor, u: float) -> Callable[[Tensor | float], Tensor]:
        """The linear map dW [b, C, h, w] -> beta G(X) dW [b, K*C, h, w]; G is zero but for the last frame.

        A number stands for a dW that is the same everywhere.
        """
        dynamics = self._dynamics
        assert dynamics.diffusion is not None
        time = torch.full((len(x),), u, device=x.device, dtype=x.dtype)
        g = dynamics.beta * dynamics.diffusion(x, time)
        still = x.new_zeros(len(x), x.shape[1] - g.shape[1], *x.shape[2:])
        return lambda increment: torch.cat([still, g * increment], dim=1)


@dataclass(frozen=True)
class ConstantDiffusion:
    """A diffusion that sees nothing: one standard deviation a channel, std [C]."""

    std: Tensor

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        std = self.std.to(x.device, x.dtype)[None, :, None, None]
        return std.expand(len(x), -1, *x.shape[2:])
