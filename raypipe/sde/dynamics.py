"""The SDE of the state: dX = [F(X) + alpha d(X)] du + beta G(X) dW (Ito, diagonal)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raypipe.sde.solvers import Solver

Field = Callable[[Tensor, Tensor], Tensor]
"""(state [b, K*C, h, w], u [b]) -> [b, C, h, w] (flow, diffusion) or [b, K*C, h, w] (denoiser)."""

Evaluate = Callable[[Sequence[Field], Tensor, Tensor], Sequence[Tensor]]
"""(fields, state, u) -> what each of them answers."""


def evaluate(fields: Sequence[Field], x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """What each field answers to one input."""
    return tuple(field(x, u) for field in fields)


@dataclass(frozen=True)
class Dynamics:
    """The three components at work. Without a diffusion the forecast is deterministic.

    evaluate: how those that see the same input are evaluated.
    """

    flow: Field
    denoiser: Field | None = None
    diffusion: Field | None = None
    alpha: float = 1.0
    beta: float = 1.0
    evaluate: Evaluate = evaluate

    @property
    def drift_fields(self) -> tuple[Field, ...]:
        """The flow, and the denoiser if it acts."""
        return (self.flow, self.denoiser) if self.denoiser is not None and self.alpha > 0 else (self.flow,)

    @property
    def stochastic(self) -> bool:
        return self.diffusion is not None and self.beta > 0

    def evaluations(self, solver: Solver) -> int:
        """Network calls that one step of the solver costs."""
        learnt = self.stochastic and not isinstance(self.diffusion, ConstantDiffusion)
        return solver.drifts * len(self.drift_fields) + solver.noises * learnt

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
        return self._drift(*self._evaluate(self._dynamics.drift_fields, x, u))

    def noise(self, x: Tensor, u: float) -> Callable[[Tensor | float], Tensor]:
        """The linear map dW [b, C, h, w] -> beta G(X) dW [b, K*C, h, w]; G is zero but for the last frame.

        A number stands for a dW that is the same everywhere.
        """
        assert self._dynamics.diffusion is not None
        return self._noise(x, *self._evaluate((self._dynamics.diffusion,), x, u))

    def drift_and_noise(self, x: Tensor, u: float) -> tuple[Tensor, Callable[[Tensor | float], Tensor]]:
        """Both, their networks evaluated together."""
        dynamics = self._dynamics
        assert dynamics.diffusion is not None
        *drift, g = self._evaluate((*dynamics.drift_fields, dynamics.diffusion), x, u)
        return self._drift(*drift), self._noise(x, g)

    def _evaluate(self, fields: Sequence[Field], x: Tensor, u: float) -> Sequence[Tensor]:
        return self._dynamics.evaluate(fields, x, torch.full((len(x),), u, device=x.device, dtype=x.dtype))

    def _drift(self, ahead: Tensor, denoising: Tensor | None = None) -> Tensor:
        channels = ahead.shape[1]
        drift = torch.cat([self._start[:, channels:] - self._start[:, :-channels], ahead], dim=1)
        return drift if denoising is None else drift + self._dynamics.alpha * denoising

    def _noise(self, x: Tensor, g: Tensor) -> Callable[[Tensor | float], Tensor]:
        scaled = self._dynamics.beta * g
        still = x.new_zeros(len(x), x.shape[1] - g.shape[1], *x.shape[2:])
        return lambda increment: torch.cat([still, scaled * increment], dim=1)


@dataclass(frozen=True)
class ConstantDiffusion:
    """A diffusion that sees nothing: one standard deviation a channel, std [C]."""

    std: Tensor

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        std = self.std.to(x.device, x.dtype)[None, :, None, None]
        return std.expand(len(x), -1, *x.shape[2:])
