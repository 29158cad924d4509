"""Orders of convergence, measured; and what a solution is between the grid's points."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from raypipe import config
from raypipe.sde.brownian import brownian, forecast_keys
from raypipe.sde.solvers import SOLVERS, solve

STEPS = (8, 16, 32, 64, 128)
NAMES = sorted(SOLVERS)
BATCHES, PATHS = 20, 200
HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Equation:
    """dX = a dt + b dW of two functions."""

    drift: Callable
    noise: Callable | None = None

    def drift_and_noise(self, x, t):
        return self.drift(x, t), self.noise(x, t)


def wiener(paths, components=1, seed=0):
    """Brownian paths [paths, components], the same for every number of steps."""
    rows = torch.arange(paths)
    drawn = brownian(forecast_keys(seed, rows, torch.zeros_like(rows)), 0, (components,))
    return lambda times: [w.double() for w in drawn(times)]


@dataclass(frozen=True)
class Order:
    """The slope of log error over log h, with its standard error over batches of paths."""

    value: float
    se: float


def order(errors, steps=STEPS):
    """errors: absolute ones of every path, a tensor [paths] for each number of steps."""
    logs = np.log([error.view(BATCHES, -1).mean(1).numpy() for error in errors])
    slopes = np.polyfit(np.log([1 / n for n in steps]), logs, 1)[0]
    return Order(slopes.mean(), slopes.std(ddof=1) / math.sqrt(BATCHES))


def slope(errors):
    return float(np.polyfit(np.log([1 / n for n in STEPS]), np.log(np.abs(errors)), 1)[0])


def test_the_configs_names_are_the_solvers():
    assert set(config.SOLVERS) == set(SOLVERS)


@pytest.mark.parametrize(("name", "expected"), [("euler_maruyama", 0.5), ("milstein", 1.0), ("heun_drift", 0.5)])
@pytest.mark.parametrize("at", [Fraction(1), HALF])
def test_strong_order_on_geometric_brownian_motion(name, expected, at):
    """dX = a X dt + b X dW has X_t = exp((a - b^2/2) t + b W_t): a Stratonovich reading would not converge to it.

    At 1/2 it is read out inside a step, an odd number of steps being taken: the order is kept there.
    """
    a, b = 0.5, 1.0
    path = wiener(BATCHES * PATHS)
    steps = STEPS if at == 1 else tuple(n + 1 for n in STEPS)
    exact = torch.exp((a - b**2 / 2) * float(at) + b * path([at])[0])
    start = torch.ones(BATCHES * PATHS, 1, dtype=torch.float64)
    errors = []
    for n in steps:
        readouts = [] if at == 1 else [at]
        solution = solve(
            SOLVERS[name].step, Equation(lambda x, t: a * x, lambda x, t: lambda w: b * x * w), start, path, steps=n,
            readouts=readouts,
        )  # fmt: skip
        errors.append(((solution.between[0] if readouts else solution.end) - exact).abs())
    measured = order(errors, steps)
    assert measured.se < 0.02
    assert abs(measured.value - expected) < 0.07 + 3 * measured.se
    assert errors[-1].mean() < 0.15


@pytest.mark.parametrize("name", NAMES)
def test_strong_order_one_on_additive_noise(name):
    """dX = -k X dt + b dW; the reference is the exponential step on a grid 8 times finer than the finest."""
    k, b, finest = 1.0, 0.5, 8 * max(STEPS)
    h, generator = 1 / finest, torch.Generator().manual_seed(1)
    fine = torch.randn(finest, BATCHES * 50, generator=generator, dtype=torch.float64) * math.sqrt(h)
    start = torch.full((BATCHES * 50,), 2.0, dtype=torch.float64)
    reference = start
    for dw in fine:
        reference = math.exp(-k * h) * reference + b * math.exp(-k * h / 2) * dw
    sums = torch.cat([fine[:1] * 0, fine.cumsum(0)])
    path = lambda times: [sums[int(t * finest)] for t in times]  # noqa: E731
    errors = []
    for steps in STEPS:
        noise = lambda x, t: lambda w: b * w + 0 * x  # noqa: E731
        end = solve(SOLVERS[name].step, Equation(lambda x, t: -k * x, noise), start, path, steps=steps).end
        errors.append((end - reference).abs())
    measured = order(errors)
    assert measured.se < 0.02
    assert abs(measured.value - 1) < 0.07 + 3 * measured.se


def test_milstein_needs_noise_that_is_diagonal():
    """dX_1 = X_2 dW_1, dX_2 = dW_2: b_1 depends on x_2, so a Levy area is missing and the order is 1/2."""
    path = wiener(BATCHES * 50, components=2)
    finest = 4 * max(STEPS)
    start = torch.zeros(BATCHES * 50, 2, dtype=torch.float64)

    def end(name, steps):
        noise = lambda x, t: lambda w: torch.stack([x[:, 1], torch.ones_like(x[:, 1])], 1) * w  # noqa: E731
        return solve(SOLVERS[name].step, Equation(lambda x, t: 0 * x, noise), start, path, steps=steps).end[:, 0]

    reference = end("euler_maruyama", finest)
    coarse = STEPS[:3]
    measured = order([(end("milstein", n) - reference).abs() for n in coarse], coarse)
    assert abs(measured.value - 0.5) < 0.1 + 3 * measured.se


def moment(name, drift, noise, x, h, power):
    """E X_1^power after one step of size h from x, exactly: Gauss-Hermite quadrature over dW."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    dw = torch.tensor(nodes) * math.sqrt(h)
    start = torch.full_like(dw, x)
    end = SOLVERS[name].step(Equation(drift, noise), start, 0.0, h, dw)(h, dw)
    return float((end.numpy() ** power * weights).sum() / weights.sum())


@pytest.mark.parametrize("name", NAMES)
def test_weak_order_one_on_geometric_brownian_motion(name):
    """E X_1^2 is m(h)^n, m(h) being that of one step from 1; exactly it is exp(2 a + b^2). Nothing is sampled."""
    a, b = 0.5, 0.6
    errors = []
    for n in STEPS:
        m = moment(name, lambda x, t: a * x, lambda x, t: lambda w: b * x * w, 1.0, 1 / n, 2)
        errors.append(m**n - math.exp(2 * a + b**2))
    assert abs(slope(errors) - 1) < 0.06


@pytest.mark.parametrize(("name", "expected"), [("euler_maruyama", 1), ("milstein", 1), ("heun_drift", 2)])
def test_weak_order_on_additive_noise(name, expected):
    """Var X_1 of dX = -k X dt + b dW, from the recursion v' = m^2 v + s^2 of the scheme; nothing is sampled."""
    k, b = 1.0, 0.7
    drift, noise = (lambda x, t: -k * x), (lambda x, t: lambda w: b * w + 0 * x)
    errors = []
    for n in STEPS:
        mean, own = moment(name, drift, noise, 1.0, 1 / n, 1), moment(name, drift, noise, 0.0, 1 / n, 2)
        variance = 0.0
        for _ in range(n):
            variance = mean**2 * variance + own
        errors.append(variance - b**2 * (1 - math.exp(-2 * k)) / (2 * k))
    assert abs(slope(errors) - expected) < 0.06


@pytest.mark.parametrize(("name", "expected"), [("euler_maruyama", 1), ("milstein", 1), ("heun_drift", 2)])
def test_order_on_an_ode_that_depends_on_time(name, expected):
    """x' = x cos t: x(1) = exp(sin 1). A wrong time in the drift costs the order or the limit."""
    errors = []
    for steps in STEPS:
        one = torch.ones(1, dtype=torch.float64)
        end = solve(SOLVERS[name].step, Equation(lambda x, t: x * math.cos(t)), one, None, steps=steps).end
        errors.append(end.item() - math.exp(math.sin(1)))
    assert abs(slope(errors) - expected) < 0.1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stochastic", [False, True])
def test_evaluations_are_as_many_as_said_and_readouts_cost_none(name, stochastic):
    times = {"drift": [], "noise": []}

    def drift(x, t):
        times["drift"].append(t)
        return x

    def noise(x, t):
        times["noise"].append(t)
        return lambda w: 0 * x + w

    readouts = [Fraction(j, 8) for j in range(1, 8)]
    path = wiener(3) if stochastic else None
    solve(SOLVERS[name].step, Equation(drift, noise), torch.zeros(3, 1), path, steps=4, readouts=readouts)
    assert len(times["drift"]) == 4 * SOLVERS[name].drifts
    assert len(times["noise"]) == (4 * SOLVERS[name].noises if stochastic else 0)
    assert set(times["noise"]) <= {0, 0.25, 0.5, 0.75}  # Ito's noise is that of a step's beginning
    assert set(times["drift"]) <= {0, 0.25, 0.5, 0.75, 1}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", range(1, 13))
def test_every_readout_falls_into_exactly_one_step(name, steps):
    """On x' = 1 the solution is t itself; 6/10 with 10 steps is where a sum of steps misses the grid."""
    for parts in range(2, 17):
        times = [Fraction(j, parts) for j in range(1, parts)]
        zero = torch.zeros(1, dtype=torch.float64)
        rule = SOLVERS[name].step
        solution = solve(rule, Equation(lambda x, t: torch.ones_like(x)), zero, None, steps=steps, readouts=times)
        np.testing.assert_allclose(torch.cat(solution.between), [float(t) for t in times], atol=1e-12)
        assert solution.end.item() == pytest.approx(1)


def nonlinear(name, steps, readouts):
    start = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    noise = lambda x, t: lambda w: (0.3 + x.sin() ** 2) * w  # noqa: E731
    path = brownian(forecast_keys(0, torch.arange(50), torch.zeros(50, dtype=torch.int64)), 0, (6,))
    return solve(
        SOLVERS[name].step, Equation(lambda x, t: x.cos() + t, noise), start, path, steps=steps, readouts=readouts
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_readouts_change_neither_a_step_nor_each_other(name, steps):
    tenths = [Fraction(j, 10) for j in range(1, 10)]
    read = nonlinear(name, steps, tenths)
    assert torch.equal(nonlinear(name, steps, []).end, read.end)
    fifths = nonlinear(name, steps, tenths[1::2]).between
    assert len(read.between) == 9 and all(torch.equal(a, b) for a, b in zip(fifths, read.between[1::2], strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reaches_its_end_without_a_jump(name):
    """Read out ever closer to the end of the one step, X comes closer to X_1; W does as the root of what is left."""
    gaps = []
    for n in (10, 1000):
        solution = nonlinear(name, 1, [Fraction(n - 1, n)])
        gaps.append((solution.between[0] - solution.end).abs().mean().item() * math.sqrt(n))
    assert gaps[1] < 1 and gaps[1] == pytest.approx(gaps[0], rel=0.25)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2])
def test_read_out_brownian_motion_has_its_law(name, steps):
    """dX = dW read out at 1/4, 1/2, 3/4: covariance min(s, t), so a bridge of variance s (1 - s) given the end."""
    times, paths = [Fraction(j, 4) for j in (1, 2, 3)], 100_000
    still, itself = (lambda x, t: torch.zeros_like(x)), (lambda x, t: lambda w: w + 0 * x)
    solution = solve(
        SOLVERS[name].step, Equation(still, itself), torch.zeros(paths, 1), wiener(paths), steps=steps, readouts=times
    )
    path = torch.stack([*solution.between, solution.end]).flatten(1)
    grid = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    torch.testing.assert_close(path.cov(), torch.minimum(grid[:, None], grid), atol=0.02, rtol=0)
    tied = path[:3] - grid[:3, None] * path[3]
    torch.testing.assert_close(tied.var(1), grid[:3] * (1 - grid[:3]), atol=0.005, rtol=0)
