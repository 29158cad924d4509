"""Solvers for dX = a(X, t) dt + b(X, t) dW over t in [0, 1] on a uniform grid, in Ito's sense.

A solver sees the equation as two functions: ``drift(x, t)`` is a, and ``noise(x, t)`` evaluates b once and
gives the linear map dW -> b dW. It returns the solution at t = 1, and where ``readouts`` ask for it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Drift = Callable[[Tensor, float], Tensor]
Noise = Callable[[Tensor, float], Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class Brownian:
    """The driving noise of one unit of time.

    increments: [steps, ...], dW_k ~ N(0, 1/steps); bridge: [readouts, ...], standard normals that fill in
    the path between the grid's points.
    """

    increments: Tensor
    bridge: Tensor

    def to(self, device: torch.device) -> "Brownian":
        return Brownian(self.increments.to(device), self.bridge.to(device))


@dataclass(frozen=True)
class Solution:
    """end: the state at t = 1; between: the states at the readout times, in their order."""

    end: Tensor
    between: tuple[Tensor, ...]


def euler_maruyama(
    drift: Drift,
    noise: Noise | None,
    x: Tensor,
    brownian: Brownian | None,
    *,
    steps: int,
    readouts: Sequence[float] = (),
) -> Solution:
    """X_{k+1} = X_k + a(X_k, t_k) h + b(X_k, t_k) dW_k (Kloeden and Platen 1992, section 10.2).

    Strong order 1/2, weak order 1. Without `noise` or `brownian` it is Euler's method for the ODE.
    readouts: ascending times in (0, 1). Between the grid's points the solution is the scheme's own
    continuation, X_k + a (t - t_k) + b (W_t - W_{t_k}), so a readout costs no evaluation and changes no step.
    """
    assert steps >= 1 and all(0 < t < 1 for t in readouts) and list(readouts) == sorted(readouts)
    h = 1.0 / steps
    between: list[Tensor] = []
    for k in range(steps):
        t, end = k / steps, (k + 1) / steps  # divided, so that every readout falls into exactly one step
        slope = drift(x, t)
        kick = noise(x, t) if noise is not None and brownian is not None else None
        times = [s - t for s in readouts if t <= s < end]
        if kick is not None and brownian is not None:
            normals = brownian.bridge[len(between) : len(between) + len(times)]
            paths = brownian_bridge(brownian.increments[k], h, times, normals)
            between += [x + slope * s + kick(w) for s, w in zip(times, paths, strict=True)]
            x = x + slope * h + kick(brownian.increments[k])
        else:
            between += [x + slope * s for s in times]
            x = x + slope * h
    return Solution(x, tuple(between))


def brownian_bridge(end: Tensor, h: float, times: Sequence[float], normals: Tensor) -> list[Tensor]:
    """W at ascending `times` in [0, h], given W_0 = 0 and W_h = end; normals: [len(times), *end.shape]."""
    path, at, reached = [], torch.zeros_like(end), 0.0
    for s, normal in zip(times, normals, strict=True):
        share = (s - reached) / (h - reached)
        at = at + share * (end - at) + math.sqrt(max(0.0, (s - reached) * (1 - share))) * normal
        reached = s
        path.append(at)
    return path
