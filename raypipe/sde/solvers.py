"""Solvers for the Ito SDE dX = a(X, t) dt + b(X, t) dW with diagonal b, over t in [0, 1] on a uniform grid.

A solver computes one step of length h from t_k. It evaluates the SDE at X_k = X(t_k) and returns the solution *inside*
the step: a function of the time s since t_k and of W(t_k + s) - W(t_k). Its value at s = h is the next state X_{k+1};
its value at an earlier s is an in-between frame, which needs no further evaluation and does not change the step.

X, a and b dW are [b, K*C, h, w]. dW is [b, C, h, w], as only the last frame of the state receives noise (see
`raypipe.sde`), or the number 0 if there is no noise.

The order of `milstein` requires that each component of b depends only on the same component of X. A learned diffusion
depends on the whole state. The Milstein correction then lacks the mixed double integrals (Levy areas): every solver
here has strong order 1/2 and weak order 1, and they differ only in the size of their errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from raypipe.sde.brownian import Wiener

Kick = Callable[[Tensor | float], Tensor | float]
"""The linear map dW -> b dW."""


class Sde(Protocol):
    """The SDE dX = a(X, t) dt + b(X, t) dW, as solvers see it."""

    def drift(self, x: Tensor, t: float) -> Tensor:
        """a(x, t)."""
        ...

    def noise(self, x: Tensor, t: float) -> Kick:
        """Evaluate b(x, t) once and return the linear map dW -> b dW."""
        ...

    def drift_and_noise(self, x: Tensor, t: float) -> tuple[Tensor, Kick]:
        """`drift` and `noise` of one input, so that their networks can be evaluated together."""
        ...


Inside = Callable[[float, Tensor | float], Tensor]
"""The solution inside a step: (s, W(t_k + s) - W(t_k)) -> X(t_k + s), for s in (0, h]."""

Step = Callable[[Sde, Tensor, float, float, "Tensor | float"], Inside]
"""One step of a solver: (SDE, X_k, t_k, h, dW = W(t_k + h) - W(t_k)) -> the solution inside the step."""


def euler_maruyama(sde: Sde, x: Tensor, t: float, h: float, dw: Tensor | float) -> Inside:
    """X_{k+1} = X_k + a h + b dW: strong order 1/2, weak order 1 (Kloeden and Platen 1992, section 10.2)."""
    a, b = sde.drift_and_noise(x, t)
    return lambda s, w: x + a * s + b(w)


def milstein(sde: Sde, x: Tensor, t: float, h: float, dw: Tensor | float) -> Inside:
    """X_{k+1} = X_k + a h + b dW + (b(Y) - b) (dW^2 - h) / (2 sqrt(h)), where Y = X_k + a h + b sqrt(h).

    This is the explicit order-1 scheme of Platen (Kloeden and Platen 1992, equation 11.1.3) for each component: the
    Milstein scheme with b' b as a finite difference. Strong and weak order 1 if b_i depends only on x_i. torchsde
    computes b' b by autograd, as a product of a vector and the full Jacobian, under the same condition.
    """
    a, b = sde.drift_and_noise(x, t)
    root: float = h**0.5
    b_at_y = sde.noise(x + a * h + b(root), t)

    def inside(s: float, w: Tensor | float) -> Tensor:
        correction = (w * w - s) / (2 * root)
        return x + a * s + b(w) + b_at_y(correction) - b(correction)

    return inside


def heun_drift(sde: Sde, x: Tensor, t: float, h: float, dw: Tensor | float) -> Inside:
    """X_{k+1} = X_k + (a + a(Y, t_k + h)) h / 2 + b dW, where Y = X_k + a h + b dW: the Heun method for the drift.

    This is the predictor-corrector scheme of Kloeden and Platen 1992, section 15.5, with alpha = 1/2 and eta = 0. b is
    evaluated at the start of the step, so the scheme solves the Ito SDE; the Heun method for b too would solve the
    Stratonovich SDE. Strong order 1/2 and weak order 1; for constant b, strong order 1 and weak order 2; without noise,
    order 2.
    """
    a, b = sde.drift_and_noise(x, t)
    curvature = (sde.drift(x + a * h + b(dw), t + h) - a) / (2 * h)
    return lambda s, w: x + a * s + curvature * (s * s) + b(w)


@dataclass(frozen=True)
class Solver:
    """A solver. drifts, noises: how often it evaluates drift and noise per step."""

    step: Step
    drifts: int
    noises: int


SOLVERS: Mapping[str, Solver] = {
    "euler_maruyama": Solver(euler_maruyama, 1, 1),
    "milstein": Solver(milstein, 1, 2),
    "heun_drift": Solver(heun_drift, 2, 1),
}


@dataclass(frozen=True)
class Solution:
    """The result of `solve`. end: the state at t = 1; between: the state at each readout time; all [b, K*C, h, w]."""

    end: Tensor
    between: tuple[Tensor, ...]


def solve(
    step: Step,
    sde: Sde,
    x: Tensor,
    wiener: Wiener | None,
    *,
    steps: int,
    readouts: Sequence[Fraction] = (),
) -> Solution:
    """Integrate from X(0) = x, [b, K*C, h, w], to t = 1 in `steps` equal steps.

    wiener: the Brownian motion; None: solve the ODE dX = a dt. readouts: ascending times in (0, 1) at which the state
    is also returned; they need not lie on the grid.
    """
    assert steps >= 1 and all(0 < t < 1 for t in readouts) and list(readouts) == sorted(readouts)
    if wiener is None:
        sde = _Noiseless(sde)
    grid = [Fraction(k, steps) for k in range(steps + 1)]
    times = sorted({*grid[1:], *readouts})
    path: dict[Fraction, Tensor | float] = dict.fromkeys([Fraction(0), *times], 0.0)
    if wiener is not None:
        path.update(zip(times, wiener(times), strict=True))
    between: list[Tensor] = []
    for begin, end in pairwise(grid):
        h, dw = 1 / steps, path[end] - path[begin]
        inside = step(sde, x, float(begin), h, dw)
        between += [inside(float(s - begin), path[s] - path[begin]) for s in readouts if begin < s < end]
        x = inside(h, dw)
        if end in readouts:
            between.append(x)
    return Solution(x, tuple(between))


class _Noiseless:
    """An SDE without its noise."""

    def __init__(self, sde: Sde) -> None:
        self.drift = sde.drift

    def noise(self, x: Tensor, t: float) -> Kick:
        return lambda w: 0.0

    def drift_and_noise(self, x: Tensor, t: float) -> tuple[Tensor, Kick]:
        return self.drift(x, t), self.noise(x, t)
