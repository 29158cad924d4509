"""Drift, noise and the count of evaluations."""

import pytest
import torch

from raypipe.sde.dynamics import ConstantDiffusion, Dynamics, evaluate
from raypipe.sde.rollout import rollout
from raypipe.sde.solvers import SOLVERS, solve


def flow(x, u):
    return x[:, -1:] * 0 + 10 + u[:, None, None, None]


def denoiser(x, u):
    return -x


def diffusion(x, u):
    return x[:, -1:].abs()


def state(*frames: float) -> torch.Tensor:
    return torch.tensor(frames, dtype=torch.float32).view(1, -1, 1, 1)


def test_drift_by_hand():
    """K = 3: the older frames move by the differences of the interval's first state, the last by the flow."""
    interval = Dynamics(flow).interval(state(1, 3, 7))
    assert interval.drift(state(1, 3, 7), 0.5).flatten().tolist() == [2, 4, 10.5]
    # further on the state has moved, the straight lines have not
    assert interval.drift(state(2, 5, 12), 0.0).flatten().tolist() == [2, 4, 10]


def test_alpha_scales_the_denoiser():
    interval = Dynamics(flow, denoiser, alpha=2).interval(state(1, 3))
    assert interval.drift(state(1, 3), 0.0).flatten().tolist() == [2 - 2, 10 - 6]


def test_one_frame_of_context():
    assert Dynamics(flow).interval(state(1)).drift(state(1), 0.0).flatten().tolist() == [10]


def test_noise_moves_the_last_frame_alone_and_beta_scales_it():
    interval = Dynamics(flow, diffusion=diffusion, beta=0.5).interval(state(1, -4))
    kick = interval.noise(state(1, -4), 0.0)
    assert kick(torch.full((1, 1, 1, 1), 3.0)).flatten().tolist() == [0, 6]


def test_constant_diffusion_has_a_scale_per_channel():
    g = ConstantDiffusion(torch.tensor([0.5, 2.0]))(torch.zeros(3, 4, 5, 6), torch.zeros(3))
    assert g.shape == (3, 2, 5, 6)
    assert torch.equal(g[:, 0], torch.full((3, 5, 6), 0.5))
    assert torch.equal(g[:, 1], torch.full((3, 5, 6), 2.0))


@pytest.mark.parametrize(
    ("dynamics", "count", "stochastic"),
    [
        (Dynamics(flow), 1, False),
        (Dynamics(flow, denoiser), 2, False),
        (Dynamics(flow, denoiser, alpha=0), 1, False),
        (Dynamics(flow, denoiser, diffusion), 3, True),
        (Dynamics(flow, None, diffusion), 2, True),
        (Dynamics(flow, None, diffusion, beta=0), 1, False),
        (Dynamics(flow, None, ConstantDiffusion(torch.ones(1))), 1, True),
    ],
)
@pytest.mark.parametrize("name", SOLVERS)
def test_evaluations_are_the_calls_made(dynamics, count, stochastic, name):
    solver = SOLVERS[name]
    assert dynamics.evaluations(SOLVERS["euler_maruyama"]) == count
    assert dynamics.stochastic == stochastic
    calls = 0

    def counted(field):
        def call(x, u):
            nonlocal calls
            calls += 1
            return field(x, u)

        return call if field is not None and not isinstance(field, ConstantDiffusion) else field

    spied = Dynamics(
        counted(dynamics.flow),
        counted(dynamics.denoiser),
        counted(dynamics.diffusion),
        dynamics.alpha,
        dynamics.beta,
    )
    interval = spied.interval(state(1, 2))
    still = (lambda times: [torch.zeros(1, 1, 1, 1) for _ in times]) if spied.stochastic else None
    solve(solver.step, interval, state(1, 2), still, steps=3)
    assert calls == 3 * dynamics.evaluations(solver)


@pytest.mark.parametrize(
    ("name", "together"),
    [
        ("euler_maruyama", [[flow, denoiser, diffusion]]),
        ("milstein", [[flow, denoiser, diffusion], [diffusion]]),
        ("heun_drift", [[flow, denoiser, diffusion], [flow, denoiser]]),
    ],
)
def test_networks_that_see_the_same_input_are_evaluated_together(name, together):
    calls = []

    def spy(fields, x, u, noise):
        calls.append((list(fields), x, u))
        return evaluate(fields, x, u, noise)

    dynamics = Dynamics(flow, denoiser, diffusion, evaluate=spy)
    still = lambda times: [torch.zeros(1, 1, 1, 1) for _ in times]  # noqa: E731
    solve(SOLVERS[name].step, dynamics.interval(state(1, 2)), state(1, 2), still, steps=2)
    assert [fields for fields, _, _ in calls] == together * 2
    assert [u.item() for _, _, u in calls[:: len(together)]] == [0.0, 0.5]


def test_together_they_are_what_they_are_alone():
    interval = Dynamics(flow, denoiser, diffusion, alpha=2, beta=0.5).interval(state(1, 3))
    drift, kick = interval.drift_and_noise(state(2, -4), 0.25)
    assert torch.equal(drift, interval.drift(state(2, -4), 0.25))
    assert torch.equal(kick(3.0), interval.noise(state(2, -4), 0.25)(3.0))


@pytest.mark.parametrize(("steps", "spread"), [(1, 0.0), (20, 0.3)])
def test_a_flow_that_sees_the_noise_is_flow_matching(steps, spread):
    """The next frame is normal around the last one + 0.5, and the flow is the exact expectation given q.

    One step is the mean; many have the right spread, but for a tenth that Euler's steps lose.
    """
    mean, std, scale = 0.5, 0.3, 0.8

    def flow(x, u, q):
        u = u[:, None, None, None]
        gain = u * std**2 / (u**2 * std**2 + (1 - u) ** 2 * scale**2)
        return mean + gain * (q - u * mean)

    dynamics = Dynamics(flow, noise_scale=torch.full((1, 1, 1), scale))
    context = torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    moved = rollout(dynamics, context, 1, steps=steps, members=500, seed=0)[0, :, 0] - context[0, -1]
    assert moved.mean().item() == pytest.approx(mean, abs=0.02)
    assert moved.std(0).mean().item() == pytest.approx(spread, rel=0.1, abs=1e-6)


def test_between_frames_a_flow_that_sees_the_noise_moves_straight_if_it_is_sure():
    dynamics = Dynamics(lambda x, u, q: torch.full_like(q, 0.6), noise_scale=torch.ones(1, 1, 1))
    context = torch.zeros(1, 2, 1, 4, 4)
    path = rollout(dynamics, context, 1, steps=3, members=2, seed=0, interpolate=6)[0, :, :, 0, 0, 0]
    torch.testing.assert_close(path, torch.linspace(0.1, 0.6, 6).expand(2, -1))
