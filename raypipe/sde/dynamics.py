"""The SDE of the state: dX = [F(X, u) + alpha d(X)] du + beta G(X, u) dW (Ito, diagonal), as in `raypipe.sde`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raypipe.sde.solvers import Solver

Field = Callable[[Tensor, Tensor], Tensor]
"""A network of the SDE: (X [b, K*C, h, w], u [b]) -> [b, C, h, w] (flow, diffusion) or [b, K*C, h, w] (denoiser)."""

Evaluate = Callable[[Sequence[Field], Tensor, Tensor], Sequence[Tensor]]
"""(fields, X, u) -> the output of each field."""


def evaluate(fields: Sequence[Field], x: Tensor, u: Tensor) -> tuple[Tensor, ...]:
    """The output of each field for the input X [b, K*C, h, w], u [b]."""
    return tuple(field(x, u) for field in fields)


@dataclass(frozen=True)
class Dynamics:
    """The three components of the SDE and their magnitudes. Without a diffusion, the forecast is deterministic.

    alpha, beta: denoising and diffusion magnitude, at least 0. evaluate: function that evaluates the fields which
    share an input, such as `raypipe.sde.compiled.compiled_evaluate()`.
    """

    flow: Field
    denoiser: Field | None = None
    diffusion: Field | None = None
    alpha: float = 1.0
    beta: float = 1.0
    evaluate: Evaluate = evaluate

    @property
    def drift_fields(self) -> tuple[Field, ...]:
        """The flow, followed by the denoiser if there is one and alpha is above 0."""
        return (self.flow, self.denoiser) if self.denoiser is not None and self.alpha > 0 else (self.flow,)

    @property
    def stochastic(self) -> bool:
        """Whether noise acts: there is a diffusion and beta is above 0."""
        return self.diffusion is not None and self.beta > 0

    def evaluations(self, solver: Solver) -> int:
        """Number of network evaluations per step of the solver. A constant diffusion counts as none."""
        diffusion_network = self.stochastic and not isinstance(self.diffusion, ConstantDiffusion)
        return solver.drifts * len(self.drift_fields) + solver.noises * diffusion_network

    def interval(self, start: Tensor) -> "Interval":
        """The SDE within the frame interval that begins at the state `start`, [b, K*C, h, w]."""
        return Interval(self, start)


class Interval:
    """Drift and noise within one frame interval, u from 0 to 1; a `raypipe.sde.solvers.Sde`.

    The older frames of the state move with the constant velocities z_{i+1} - z_i, which the state at u = 0 determines;
    the last frame moves with the flow.
    """

    def __init__(self, dynamics: Dynamics, start: Tensor) -> None:
        self._dynamics = dynamics
        self._start = start

    def drift(self, x: Tensor, u: float) -> Tensor:
        """F(X, u) + alpha d(X), [b, K*C, h, w]."""
        return self._drift(*self._evaluate(self._dynamics.drift_fields, x, u))

    def noise(self, x: Tensor, u: float) -> Callable[[Tensor | float], Tensor]:
        """The linear map dW [b, C, h, w] -> beta G(X, u) dW [b, K*C, h, w], which is zero except for the last frame.

        The map also takes a number, which stands for a dW with this value everywhere.
        """
        assert self._dynamics.diffusion is not None
        return self._noise(x, *self._evaluate((self._dynamics.diffusion,), x, u))

    def drift_and_noise(self, x: Tensor, u: float) -> tuple[Tensor, Callable[[Tensor | float], Tensor]]:
        """`drift` and `noise` with a single call of `Dynamics.evaluate`."""
        dynamics = self._dynamics
        assert dynamics.diffusion is not None
        *drift, g = self._evaluate((*dynamics.drift_fields, dynamics.diffusion), x, u)
        return self._drift(*drift), self._noise(x, g)

    def _evaluate(self, fields: Sequence[Field], x: Tensor, u: float) -> Sequence[Tensor]:
        return self._dynamics.evaluate(fields, x, torch.full((len(x),), u, device=x.device, dtype=x.dtype))

    def _drift(self, flow: Tensor, denoising: Tensor | None = None) -> Tensor:
        channels = flow.shape[1]
        drift = torch.cat([self._start[:, channels:] - self._start[:, :-channels], flow], dim=1)
        return drift if denoising is None else drift + self._dynamics.alpha * denoising

    def _noise(self, x: Tensor, g: Tensor) -> Callable[[Tensor | float], Tensor]:
        scaled = self._dynamics.beta * g
        older_frames = x.new_zeros(len(x), x.shape[1] - g.shape[1], *x.shape[2:])
        return lambda increment: torch.cat([older_frames, scaled * increment], dim=1)


@dataclass(frozen=True)
class ConstantDiffusion:
    """A diffusion g that does not depend on the state: one standard deviation per channel, std [C]."""

    std: Tensor

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        """State [b, K*C, h, w] -> g [b, C, h, w]. u is ignored."""
        std = self.std.to(x.device, x.dtype)[None, :, None, None]
        return std.expand(len(x), -1, *x.shape[2:])
