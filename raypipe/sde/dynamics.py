"""The SDE of the state: dX = [F(X, u) + alpha d(X)] du + beta G(X, u) dW (Ito, diagonal), as in `raypipe.sde`.

Or, if the flow sees the noise, the random differential equation of the same module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raypipe.sde.interpolants import INPUT, INTERPOLANTS, Interpolant
from raypipe.sde.solvers import Solver

Field = Callable[..., Tensor]
"""A network of the SDE: (X [b, K*C, h, w], u [b]) -> its output; where noise is an input, (X_0, u, q [b, C, h, w]).

The output is [b, C, h, w] (flow, diffusion), [b, 2*C, h, w] (flow and diffusion in one) or [b, K*C, h, w] (denoiser).
"""

Evaluate = Callable[[Sequence[Field], Tensor, Tensor, "Tensor | None"], Sequence[Tensor]]
"""(fields, X, u, q) -> the output of each field."""


def evaluate(fields: Sequence[Field], x: Tensor, u: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
    """The output of each field for the input X [b, K*C, h, w], u [b], q [b, C, h, w]."""
    return tuple(field(x, u) if noise is None else field(x, u, noise) for field in fields)


@dataclass(frozen=True)
class Dynamics:
    """The three components of the SDE and their magnitudes. Without noise, the forecast is deterministic.

    diffusion: the same object as `flow` if one network computes both. noise_scale: c [C, 1, 1], if the flow sees where
    on the way between two frames it is, along `interpolant`, see `along`. alpha, beta: denoising and noise magnitude,
    at least 0; beta multiplies g or xi. evaluate: function that evaluates the fields which share an input, such as
    `raypipe.sde.compiled.compiled_evaluate()`.
    """

    flow: Field
    denoiser: Field | None = None
    diffusion: Field | None = None
    alpha: float = 1.0
    beta: float = 1.0
    noise_scale: Tensor | None = None
    evaluate: Evaluate = evaluate
    interpolant: Interpolant = INPUT

    @classmethod
    def along(
        cls,
        kind: str,
        network: Field,
        scale: Tensor,
        denoiser: Field | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        evaluate: Evaluate = evaluate,
    ) -> "Dynamics":
        """The dynamics of a network that was trained on an interpolant, a key of INTERPOLANTS. scale: c [C, 1, 1]."""
        interpolant = INTERPOLANTS[kind]
        known = None if interpolant.profile is None else ConstantDiffusion(scale.flatten(), interpolant.profile)
        return cls(network, denoiser, known, alpha, beta, scale, evaluate, interpolant)

    @property
    def joint(self) -> bool:
        """Whether one network computes flow and diffusion."""
        return self.diffusion is self.flow

    @property
    def noise_input(self) -> bool:
        """Whether the flow sees the noise of the frame interval, so that none acts as g dW."""
        return self.noise_scale is not None and self.diffusion is None

    @property
    def drift_fields(self) -> tuple[Field, ...]:
        """The flow, followed by the denoiser if there is one and alpha is above 0."""
        return (self.flow, self.denoiser) if self.denoiser is not None and self.alpha > 0 else (self.flow,)

    @property
    def stochastic(self) -> bool:
        """Whether noise acts: there is a diffusion, or the flow sees the noise, and beta is above 0."""
        return (self.diffusion is not None or self.noise_input) and self.beta > 0

    @property
    def additive(self) -> bool:
        """Whether noise acts as g dW."""
        return self.stochastic and not self.noise_input

    def evaluations(self, solver: Solver) -> int:
        """Number of network evaluations per step of the solver. A constant diffusion counts as none."""
        if self.joint and self.stochastic:  # an evaluation gives drift and noise; some solvers need more of one
            return max(solver.drifts, solver.noises) + solver.drifts * (len(self.drift_fields) - 1)
        diffusion_network = self.additive and not isinstance(self.diffusion, ConstantDiffusion)
        return solver.drifts * len(self.drift_fields) + solver.noises * diffusion_network

    def interval(self, start: Tensor, noise: Tensor | None = None) -> "Interval":
        """The SDE within the frame interval that begins at the state `start`, [b, K*C, h, w].

        noise: xi [b, C, h, w], the increment of the Brownian motion over the interval, if `noise_input`; None: 0.
        """
        if self.noise_scale is None:
            return Interval(self, start)
        xi = start.new_zeros(len(start), len(self.noise_scale), *start.shape[2:]) if noise is None else noise
        return Interval(self, start, self.beta * self.noise_scale * xi)


class Interval:
    """Drift and noise within one frame interval, u from 0 to 1; a `raypipe.sde.solvers.Sde`.

    The older frames of the state move with the constant velocities z_{i+1} - z_i, which the state at u = 0 determines;
    the last frame moves with the flow. noise: c xi [b, C, h, w], if the flow sees the noise.
    """

    def __init__(self, dynamics: Dynamics, start: Tensor, noise: Tensor | None = None) -> None:
        self._dynamics = dynamics
        self._start = start
        self._noise_seen = noise

    def drift(self, x: Tensor, u: float) -> Tensor:
        """F(X, u) + alpha d(X), [b, K*C, h, w]."""
        f, *rest = self._evaluate(self._dynamics.drift_fields, x, u)
        return self._drift(self._velocity(f.chunk(2, dim=1)[0] if self._dynamics.joint else f, x, u), *rest)

    def noise(self, x: Tensor, u: float) -> Callable[[Tensor | float], Tensor]:
        """The linear map dW [b, C, h, w] -> beta G(X, u) dW [b, K*C, h, w], which is zero except for the last frame.

        The map also takes a number, which stands for a dW with this value everywhere.
        """
        assert self._dynamics.diffusion is not None
        (g,) = self._evaluate((self._dynamics.diffusion,), x, u)
        return self._noise(x, g.chunk(2, dim=1)[1] if self._dynamics.joint else g)

    def drift_and_noise(self, x: Tensor, u: float) -> tuple[Tensor, Callable[[Tensor | float], Tensor]]:
        """`drift` and `noise` with a single call of `Dynamics.evaluate`."""
        dynamics = self._dynamics
        assert dynamics.diffusion is not None
        if dynamics.joint:
            both, *rest = self._evaluate(dynamics.drift_fields, x, u)
            f, g = both.chunk(2, dim=1)
        else:
            f, *rest, g = self._evaluate((*dynamics.drift_fields, dynamics.diffusion), x, u)
        return self._drift(self._velocity(f, x, u), *rest), self._noise(x, g)

    def _evaluate(self, fields: Sequence[Field], x: Tensor, u: float) -> Sequence[Tensor]:
        time = torch.full((len(x),), u, device=x.device, dtype=x.dtype)
        if self._noise_seen is None:
            return self._dynamics.evaluate(fields, x, time, None)
        seen = self._dynamics.interpolant.seen(self._gone(x), self._noise_seen, u)
        return self._dynamics.evaluate(fields, self._start, time, seen)

    def _gone(self, x: Tensor) -> Tensor:
        """z_u - z_t, [b, C, h, w]."""
        assert self._noise_seen is not None
        channels = self._noise_seen.shape[1]
        return x[:, -channels:] - self._start[:, -channels:]

    def _velocity(self, f: Tensor, x: Tensor, u: float) -> Tensor:
        """The velocity of the last frame, [b, C, h, w], from the flow's answer."""
        if self._noise_seen is None:
            return f
        return self._dynamics.interpolant.drift(f, self._gone(x), self._noise_seen, u)

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
    """A diffusion g that does not depend on the state: one standard deviation per channel, std [C].

    profile: u [b] -> factor of std, [b], if it depends on the time.
    """

    std: Tensor
    profile: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, u: Tensor, noise: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] and time u [b] -> g [b, C, h, w]. noise is ignored."""
        std = self.std.to(x.device, x.dtype)[None, :, None, None]
        if self.profile is not None:
            std = self.profile(u)[:, None, None, None] * std
        return std.expand(len(x), -1, *x.shape[2:])
