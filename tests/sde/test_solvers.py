"""Orders of convergence, and readouts between the grid's points."""

import math

import numpy as np
import pytest
import torch

from raypipe.sde.solvers import Brownian, brownian_bridge, euler_maruyama

STEPS = (8, 16, 32, 64, 128)


def increments(paths: int, finest: int, seed: int) -> torch.Tensor:
    """dW on the finest grid, [finest, paths]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(finest, paths, generator=generator, dtype=torch.float64) / math.sqrt(finest)


def coarsen(fine: torch.Tensor, steps: int) -> Brownian:
    """The same paths on a grid of `steps` steps."""
    return Brownian(fine.view(steps, len(fine) // steps, -1).sum(1), fine.new_empty(0, fine.shape[1]))


def slope(errors: list[float]) -> float:
    """Order of convergence: the slope of log error over log h."""
    return float(np.polyfit(np.log([1 / n for n in STEPS]), np.log(errors), 1)[0])


def test_strong_order_one_half_on_geometric_brownian_motion():
    """dX = a X dt + b X dW has X_1 = exp(a - b^2/2 + b W_1): a Stratonovich reading would not converge to it."""
    a, b = 0.5, 1.0
    fine = increments(paths=4000, finest=max(STEPS), seed=0)
    exact = torch.exp(a - b**2 / 2 + b * fine.sum(0))
    start = torch.ones(4000, dtype=torch.float64)
    errors = []
    for steps in STEPS:
        path = coarsen(fine, steps)
        end = euler_maruyama(lambda x, t: a * x, lambda x, t: lambda dw: b * x * dw, start, path, steps=steps).end
        errors.append((end - exact).abs().mean().item())
    assert abs(slope(errors) - 0.5) < 0.15
    assert errors[-1] < 0.15


def test_strong_order_one_on_additive_noise():
    """dX = -k X dt + b dW; the reference is the exact step on a grid 16 times finer than the finest."""
    k, b, finest = 1.0, 0.5, 16 * max(STEPS)
    fine = increments(paths=1000, finest=finest, seed=1)
    start = torch.full((1000,), 2.0, dtype=torch.float64)
    reference, h = start, 1 / finest
    for dw in fine:
        reference = math.exp(-k * h) * reference + b * math.exp(-k * h / 2) * dw
    errors = []
    for steps in STEPS:
        path = coarsen(fine, steps)
        end = euler_maruyama(lambda x, t: -k * x, lambda x, t: lambda dw: b * dw, start, path, steps=steps).end
        errors.append((end - reference).abs().mean().item())
    assert abs(slope(errors) - 1) < 0.15


def test_first_order_on_an_ode_that_depends_on_time():
    """x' = x cos t: x(1) = exp(sin 1). A wrong time in the drift costs the order or the limit."""
    errors = []
    for steps in STEPS:
        one = torch.ones(1, dtype=torch.float64)
        end = euler_maruyama(lambda x, t: x * math.cos(t), None, one, None, steps=steps).end
        errors.append(abs(end.item() - math.exp(math.sin(1))))
    assert abs(slope(errors) - 1) < 0.15


def test_weak_order_one():
    """E X_1 of the scheme for dX = a X dt + b X dW is (1 + a h)^n, whatever b."""
    a, steps = 0.5, 4
    fine = increments(paths=200_000, finest=steps, seed=2)
    start = torch.ones(200_000, dtype=torch.float64)
    noise = lambda x, t: lambda dw: 0.4 * x * dw  # noqa: E731
    end = euler_maruyama(lambda x, t: a * x, noise, start, coarsen(fine, steps), steps=steps).end
    standard_error = end.std().item() / math.sqrt(len(end))
    assert abs(end.mean().item() - (1 + a / steps) ** steps) < 4 * standard_error


def test_drift_and_noise_are_evaluated_once_a_step_at_its_beginning():
    times: dict[str, list[float]] = {"drift": [], "noise": []}

    def drift(x, t):
        times["drift"].append(t)
        return x

    def noise(x, t):
        times["noise"].append(t)
        return lambda dw: dw

    normals = Brownian(torch.zeros(4, 1), torch.zeros(7, 1))
    euler_maruyama(drift, noise, torch.zeros(1), normals, steps=4, readouts=[j / 8 for j in range(1, 8)])
    assert times == {"drift": [0, 0.25, 0.5, 0.75], "noise": [0, 0.25, 0.5, 0.75]}


@pytest.mark.parametrize("steps", range(1, 13))
def test_every_readout_falls_into_exactly_one_step(steps):
    """On x' = 1 the solution is t itself; 6/10 with 10 steps is where a sum of steps misses the grid."""
    for parts in range(2, 17):
        times = [j / parts for j in range(1, parts)]
        zero = torch.zeros(1, dtype=torch.float64)
        solution = euler_maruyama(lambda x, t: torch.ones_like(x), None, zero, None, steps=steps, readouts=times)
        np.testing.assert_allclose(torch.cat(solution.between) if times else [], times, atol=1e-12)
        assert solution.end.item() == pytest.approx(1)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_readouts_change_no_step(steps):
    generator = torch.Generator().manual_seed(3)
    dw = torch.randn(steps, 6, generator=generator) / math.sqrt(steps)
    bridge = torch.randn(9, 6, generator=generator)
    start = torch.randn(6, generator=generator)

    def solve(readouts):
        brownian = Brownian(dw, bridge[: len(readouts)])
        noise = lambda x, t: lambda w: (0.3 + x.sin() ** 2) * w  # noqa: E731
        return euler_maruyama(lambda x, t: x.cos() + t, noise, start, brownian, steps=steps, readouts=readouts)

    read = solve([j / 10 for j in range(1, 10)])
    assert torch.equal(solve([]).end, read.end)
    assert len(read.between) == 9


@pytest.mark.parametrize("steps", [1, 2])
def test_read_out_brownian_motion_has_its_law(steps):
    """dX = dW read out at 1/4, 1/2, 3/4: covariance min(s, t), so a bridge of variance s (1 - s) given the end."""
    paths, times = 100_000, [0.25, 0.5, 0.75]
    generator = torch.Generator().manual_seed(4)
    dw = torch.randn(steps, paths, generator=generator, dtype=torch.float64) / math.sqrt(steps)
    bridge = torch.randn(3, paths, generator=generator, dtype=torch.float64)
    start = torch.zeros(paths, dtype=torch.float64)
    solution = euler_maruyama(
        lambda x, t: torch.zeros_like(x),
        lambda x, t: lambda w: w,
        start,
        Brownian(dw, bridge),
        steps=steps,
        readouts=times,
    )
    path = torch.stack([*solution.between, solution.end])
    grid = torch.tensor([*times, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.cov(), torch.minimum(grid[:, None], grid), atol=0.02, rtol=0)
    tied = path[:3] - grid[:3, None] * path[3]
    expected = grid[:3] * (1 - grid[:3])
    torch.testing.assert_close(tied.var(1), expected, atol=0.005, rtol=0)


def test_bridge_ends_where_it_must():
    end = torch.tensor([2.0, -1.0])
    at_start, middle = brownian_bridge(end, h=0.5, times=[0.0, 0.25], normals=torch.zeros(2, 2))
    assert torch.equal(at_start, torch.zeros(2))
    torch.testing.assert_close(middle, end / 2)
    (at_end,) = brownian_bridge(end, h=0.5, times=[0.5], normals=torch.ones(1, 2))
    torch.testing.assert_close(at_end, end)
