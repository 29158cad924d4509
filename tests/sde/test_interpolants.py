"""Forecasts along interpolants whose answer is known, and the formulas of the Foellmer process."""

import math

import pytest
import torch

from raypipe.config import RIVALS
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.interpolants import INTERPOLANTS
from raypipe.sde.rollout import rollout
from raypipe.sde.solvers import SOLVERS

MEAN, STD, SCALE = 0.5, 0.3, 0.8
EVERY = pytest.mark.parametrize("kind", list(INTERPOLANTS))


def exact(kind):
    """E[target | q] where the movement is N(MEAN, STD^2): all are linear in the movement and in the noise."""
    way, one, zero = INTERPOLANTS[kind], torch.ones(()), torch.zeros(())

    def answer(x, u, q):
        u = u[:, None, None, None]
        of_movement, of_noise = (way.target(a, b, u) for a, b in ((one, zero), (zero, one)))
        seen = [way.seen(way.gone(a, b, u), b, u) for a, b in ((one, zero), (zero, one))]
        shared = of_movement * seen[0] * STD**2 + of_noise * seen[1] * SCALE**2
        variance = seen[0] ** 2 * STD**2 + seen[1] ** 2 * SCALE**2
        gain = torch.where(variance > 0, shared / variance, 0.0)
        return of_movement * MEAN + gain * (q - seen[0] * MEAN)

    return answer


def movements(kind, steps, solver="euler_maruyama", members=500):
    dynamics = Dynamics.along(kind, exact(kind), torch.full((2, 1, 1), SCALE))
    context = torch.randn(1, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return rollout(dynamics, context, 1, steps=steps, members=members, seed=0, solver=solver)[0, :, 0] - context[0, -1]


@pytest.mark.parametrize("kind", RIVALS)  # `input`, which stops short of dividing by 0: test_dynamics.py
def test_with_the_exact_answer_many_steps_give_the_distribution_of_the_next_frame(kind):
    moved = movements(kind, 100)
    assert moved.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert moved.std(0).mean().item() == pytest.approx(STD, rel=0.05)
    tails = ((moved - MEAN) / STD).pow(4).mean().item()
    assert tails == pytest.approx(3, rel=0.1)


@EVERY
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_what_few_steps_give(kind, steps):
    """One step from noise is the mean, with the error of Euler's steps; the noise of the last step of dW stays."""
    moved = movements(kind, steps)
    assert moved.mean().item() == pytest.approx(MEAN, abs=0.03)
    if steps == 1:
        spread = SCALE if kind == "foellmer" else 0.0
        assert moved.std(0).mean().item() == pytest.approx(spread, rel=0.05, abs=1e-5)


@EVERY
def test_each_step_is_one_evaluation_of_the_network(kind):
    calls = []

    def network(x, u, q):
        calls.append(len(x))
        return torch.zeros_like(q)

    dynamics = Dynamics.along(kind, network, torch.ones(2, 1, 1))
    rollout(dynamics, torch.zeros(1, 3, 2, 4, 4), 2, steps=5, members=3, seed=0)
    assert calls == [3] * (2 * 5)
    assert dynamics.evaluations(SOLVERS["euler_maruyama"]) == 1


def test_the_foellmer_process_is_that_of_the_paper():
    """Its drift and diffusion, in float64, from the formulas for any alpha, beta and sigma (arXiv 2403.13724)."""
    way = INTERPOLANTS["foellmer"]
    schedules = {
        "alpha": lambda u: 1 - u,
        "beta": lambda u: u,
        "sigma": lambda u: SCALE * (1 - u),
        "log": lambda u: torch.log(u / (u.sqrt() * SCALE * (1 - u))),
    }
    for time in (0.1, 0.5, 0.9):
        u = torch.tensor(time, dtype=torch.float64, requires_grad=True)
        values = {name: made(u) for name, made in schedules.items()}
        rates = {name: torch.autograd.grad(value, u, retain_graph=True)[0] for name, value in values.items()}
        alpha, beta, sigma = values["alpha"], values["beta"], values["sigma"]
        g2 = (2 * u * sigma**2 * rates["log"]).abs()
        assert (SCALE * way.profile(u)).item() == pytest.approx(math.sqrt(g2.item()))
        last, then, noise, answer = (torch.tensor(v, dtype=torch.float64) for v in (0.7, -0.4, 0.9, 0.25))
        path = alpha * last + beta * then + sigma * u.sqrt() * noise / SCALE
        gone = way.gone(then - last, noise, u)
        assert (path - last).item() == pytest.approx(gone.item())
        assert way.seen(gone, noise, u) is gone
        velocity = rates["alpha"] * last + rates["beta"] * then + rates["sigma"] * u.sqrt() * noise / SCALE
        assert way.target(then - last, noise, u).item() == pytest.approx(velocity.item())
        c = rates["beta"] * path + (beta * rates["alpha"] - rates["beta"] * alpha) * last
        score = (beta * answer - c) / (u * sigma * (rates["beta"] * sigma - beta * rates["sigma"]))
        drift = answer + (g2 - sigma**2) / 2 * score
        assert way.drift(answer, gone, noise, time).item() == pytest.approx(drift.item())


@pytest.mark.parametrize("solver", list(SOLVERS))
def test_the_foellmer_process_is_the_same_with_every_solver(solver):
    moved = movements("foellmer", 50, solver, members=300)
    assert moved.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert moved.std(0).mean().item() == pytest.approx(STD, rel=0.06)
