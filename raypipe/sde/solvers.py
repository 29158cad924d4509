"""Solvers for dX = a(X, t) dt + b(X, t) dW over t in [0, 1] on a uniform grid, in Ito's sense.

A solver sees the equation as two functions: ``drift(x, t)`` is a, and ``noise(x, t)`` evaluates b once and
gives the linear map dW -> b dW; ``drift_and_noise(x, t)`` is both of one input. Every solver takes one step: it
evaluates what it needs from X_k and dW, and gives the solution *inside* the step, a function of the time s since t_k
and of W_{t_k + s} - W_{t_k}. Its value at s = h is the next state; at an earlier s it is an in-between frame, which
costs no evaluation and changes no step.

A learnt g looks at all of the state, not at its own component alone. Then Milstein's correction lacks the mixed
double integrals (Levy areas), every solver here has strong order 1/2 and weak order 1, and what tells them apart is
the size of their errors.
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
    """dX = a dt + b dW."""

    def drift(self, x: Tensor, t: float) -> Tensor: ...

    def noise(self, x: Tensor, t: float) -> Kick: ...

    def drift_and_noise(self, x: Tensor, t: float) -> tuple[Tensor, Kick]:
        """Both of one input: what evaluates them can do so at once."""
        ...


Inside = Callable[[float, Tensor | float], Tensor]
"""(s, W_{t_k + s} - W_{t_k}) -> X_{t_k + s}, for s in (0, h]."""

Step = Callable[[Sde, Tensor, float, float, "Tensor | float"], Inside]
"""The equation, X_k, t_k, h and dW -> the solution inside the step."""


def euler_maruyama(sde: Sde, x: Tensor, t: float, h: float, dw: Tensor | float) -> Inside:
    """X_{k+1} = X_k + a h + b dW (Kloeden and Platen 1992, section 10.2): strong order 1/2, weak order 1."""
    a, b = sde.drift_and_noise(x, t)
    return lambda s, w: x + a * s + b(w)


def milstein(sde: Sde, x: Tensor, t: float, h: float, dw: Tensor | float) -> Inside:
    """X_k + a h + b dW + (b(Y) - b) (dW^2 - h) / (2 sqrt(h)), Y = X_k + a h + b sqrt(h): strong and weak order 1.

    Platen's explicit scheme (Kloeden and Platen 1992, equation 11.1.3), on each component: Milstein's with
    b' b in finite differences. Exact to its order only where b_i depends on x_i alone. The derivative by
    autograd that torchsde takes is a vector product with the whole Jacobian, and rests on the same condition.
    """
    a, b = sde.drift_and_noise(x, t)
    root: float = h**0.5
    shifted = sde.noise(x + a * h + b(root), t)

    def inside(s: float, w: Tensor | float) -> Tensor:
        double = (w * w - s) / (2 * root)
        return x + a * s + b(w) + shifted(double) - b(double)

    return inside


def heun_drift(sde: Sde, x: Tensor, t: float, h: float, dw: Tensor | float) -> Inside:
    """X_k + (a + a(Y, t_k + h)) h / 2 + b dW, Y = X_k + a h + b dW: Heun's drift, Euler's noise.

    The predictor-corrector of Kloeden and Platen 1992, section 15.5, with alpha = 1/2 and eta = 0; the noise is
    looked at where a step begins, so it is Ito's (Heun's noise would be Stratonovich's). Strong order 1/2, weak
    order 1; where b is constant strong order 1 and weak order 2; without noise, order 2.
    """
    a, b = sde.drift_and_noise(x, t)
    turn = (sde.drift(x + a * h + b(dw), t + h) - a) / (2 * h)
    return lambda s, w: x + a * s + turn * (s * s) + b(w)


@dataclass(frozen=True)
class Solver:
    """A solver and what its step costs: how often it evaluates drift and noise."""

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
    """end: the state at t = 1; between: the states at the readout times, in their order."""

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
    """From X_0 = x to t = 1 in `steps` equal steps, driven by `wiener`; without it, the ODE dX = a dt.

    readouts: ascending times in (0, 1).
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
    """An equation's drift alone."""

    def __init__(self, sde: Sde) -> None:
        self.drift = sde.drift

    def noise(self, x: Tensor, t: float) -> Kick:
        return lambda w: 0.0

    def drift_and_noise(self, x: Tensor, t: float) -> tuple[Tensor, Kick]:
        return self.drift(x, t), self.noise(x, t)
