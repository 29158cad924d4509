"""Forecasts with hand-made components, whose answers are known."""

import pytest
import torch

from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from raypipe.sde.rollout import rollout
from raypipe.sde.solvers import SOLVERS

C, H, W = 2, 3, 3
NAMES = sorted(SOLVERS)


def constant_velocity(x, u):
    return torch.full_like(x[:, -C:], 0.5)


def towards_zero(x, u):
    return -0.4 * x[:, -C:]


def last_difference(x, u):
    """What the two newest frames of the state are apart: constant velocity, read from the context."""
    return x[:, -C:] - x[:, -2 * C : -C]


def nonlinear(x, u):
    return x[:, -C:].sin() + x[:, :C] * u[:, None, None, None]


def diffusion(x, u):
    return 0.2 + 0.1 * x[:, -C:].abs()


def denoiser(x, u):
    return -0.1 * x


FULL = Dynamics(nonlinear, denoiser, diffusion, alpha=1.2, beta=0.8)


@pytest.fixture
def context():
    return torch.randn(5, 3, C, H, W, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_constant_velocity(context, steps):
    forecast = rollout(Dynamics(constant_velocity), context, 4, steps=steps, members=1, seed=0)
    assert forecast.shape == (5, 1, 4, C, H, W)
    expected = context[:, -1:] + 0.5 * torch.arange(1, 5).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(forecast[:, 0], expected)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_linear_flow_decays_as_eulers_method_does(context, steps):
    forecast = rollout(Dynamics(towards_zero), context, 3, steps=steps, members=1, seed=0)
    factor = (1 - 0.4 / steps) ** steps
    expected = torch.stack([context[:, -1] * factor**k for k in (1, 2, 3)], dim=1)
    torch.testing.assert_close(forecast[:, 0], expected)


def test_the_window_slides():
    """Frames 0, 1, 3 and a velocity that is the difference of the last two: 5, 7, 9 at one step a frame.

    It is 5 only if the newest pair is (1, 3), and 7 only if the pair then is (3, 5).
    """
    context = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, C, H, W)
    forecast = rollout(Dynamics(last_difference), context, 3, steps=1, members=1, seed=0)
    assert forecast[0, 0, :, 0, 0, 0].tolist() == [5, 7, 9]


def test_older_frames_move_on_straight_lines():
    """The flow reads the oldest frame, which goes from 0 to 1 in the interval: at u = 0, 1/2 it is 0, 1/2."""
    seen = []

    def spy(x, u):
        seen.append((u[0].item(), x[0, 0, 0, 0].item(), x[0, C, 0, 0].item()))
        return torch.zeros_like(x[:, -C:])

    context = torch.tensor([0.0, 1.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, C, H, W)
    rollout(Dynamics(spy), context, 2, steps=2, members=1, seed=0)
    # the second interval begins at the true frames 1, 3, 3
    assert seen == [(0.0, 0.0, 1.0), (0.5, 0.5, 2.0), (0.0, 1.0, 3.0), (0.5, 2.0, 3.0)]


def test_alpha_acts(context):
    """One step from x with flow 0 and d = -0.1 x: (1 - 0.1 alpha) x."""
    still = Dynamics(lambda x, u: torch.zeros_like(x[:, -C:]), denoiser, alpha=3.0)
    torch.testing.assert_close(rollout(still, context, 1, steps=1, members=1, seed=0)[:, 0, 0], 0.7 * context[:, -1])


def test_beta_acts(context):
    def spread(beta: float) -> torch.Tensor:
        g = ConstantDiffusion(torch.tensor([0.5, 2.0]))
        dynamics = Dynamics(constant_velocity, None, g, beta=beta)
        forecast = rollout(dynamics, context, 1, steps=2, members=400, seed=0)[:, :, 0]
        return forecast.std(1).mean((0, 2, 3))

    torch.testing.assert_close(spread(1.0), torch.tensor([0.5, 2.0]), rtol=0.05, atol=0)
    torch.testing.assert_close(spread(0.5), spread(1.0) / 2, rtol=1e-4, atol=0)
    assert spread(0.0).max() < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("interpolate", [2, 4, 10])
def test_frames_in_between_of_constant_velocity_lie_on_a_line(context, steps, interpolate):
    dynamics = Dynamics(constant_velocity)
    forecast = rollout(dynamics, context, 2, steps=steps, members=1, seed=0, interpolate=interpolate)
    assert forecast.shape == (5, 1, 2 * interpolate, C, H, W)
    times = torch.arange(1, 2 * interpolate + 1).view(1, -1, 1, 1, 1) / interpolate
    torch.testing.assert_close(forecast[:, 0], context[:, -1:] + 0.5 * times)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("interpolate", [2, 5, 10])
def test_whole_frames_are_the_same_with_and_without_those_in_between(context, solver, steps, interpolate):
    plain = rollout(FULL, context, 3, steps=steps, members=2, seed=1, solver=solver)
    dense = rollout(FULL, context, 3, steps=steps, members=2, seed=1, solver=solver, interpolate=interpolate)
    assert torch.equal(dense[:, :, interpolate - 1 :: interpolate], plain)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize(("few", "many"), [(2, 4), (2, 6), (3, 6), (3, 12), (5, 10)])
def test_more_frames_in_between_only_add(context, solver, few, many):
    """A half is a half, whether asked for among halves, quarters or sixths."""
    sparse, dense = (
        rollout(FULL, context, 2, steps=3, members=2, seed=1, solver=solver, interpolate=k) for k in (few, many)
    )
    assert torch.equal(dense[:, :, many // few - 1 :: many // few], sparse)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("interpolate", [1, 4])
def test_in_two_parts_it_is_what_it_is_in_one(context, solver, interpolate):
    """The last K whole frames of every member, and the number of frames so far, are all that the rest depends on."""
    settings = {"steps": 2, "members": 3, "seed": 1, "solver": solver, "interpolate": interpolate}
    whole = rollout(FULL, context, 7, **settings)
    first = rollout(FULL, context, 4, **settings)
    known = first[:, :, interpolate - 1 :: interpolate][:, :, -context.shape[1] :]
    second = rollout(FULL, known, 3, first_frame=4, **settings)
    assert torch.equal(torch.cat([first, second], dim=2), whole)
    repeated = rollout(FULL, known, 3, **settings)
    assert not torch.equal(repeated, second)


def test_a_deterministic_forecast_goes_on_from_members_that_differ(context):
    known = torch.stack([context, 2 * context], dim=1)
    forecast = rollout(Dynamics(nonlinear), known, 2, steps=2, members=2, seed=0)
    for m in range(2):
        alone = rollout(Dynamics(nonlinear), known[:, m], 2, steps=2, members=1, seed=0)
        torch.testing.assert_close(forecast[:, m], alone[:, 0], rtol=0, atol=1e-6)


def exact_path(steps, solver):
    """Flow 0 and constant g: every solver is exact, so the forecast is the Brownian path itself."""
    dynamics = Dynamics(lambda x, u: torch.zeros_like(x[:, -C:]), None, ConstantDiffusion(torch.ones(C)))
    return rollout(dynamics, torch.zeros(4, 2, C, H, W), 3, steps=steps, members=2, seed=3, solver=solver)


@pytest.mark.parametrize("solver", NAMES)
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_solvers_and_numbers_of_steps_are_compared_on_one_path(solver, steps):
    torch.testing.assert_close(exact_path(steps, solver), exact_path(1, "euler_maruyama"), rtol=0, atol=1e-5)


def test_readouts_of_noise_have_the_law_of_brownian_motion():
    """Flow 0, g = 1, from 0: variance k/4 at the k-th quarter; tied to the whole frame, s (1 - s)."""
    still = Dynamics(lambda x, u: torch.zeros_like(x[:, -C:]), None, ConstantDiffusion(torch.ones(C)))
    forecast = rollout(still, torch.zeros(1, 2, C, H, W), 1, steps=1, members=3000, seed=0, interpolate=4)[0]
    s = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(forecast[:, :3].var((0, 2, 3, 4)), s, rtol=0.05, atol=0)
    tied = forecast[:, :3] - s.view(1, 3, 1, 1, 1) * forecast[:, 3:]
    torch.testing.assert_close(tied.var((0, 2, 3, 4)), s * (1 - s), rtol=0.05, atol=0)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_batching_changes_nothing(context, batch_size):
    together = rollout(FULL, context, 3, steps=2, members=3, seed=1, interpolate=2)
    apart = rollout(FULL, context, 3, steps=2, members=3, seed=1, interpolate=2, batch_size=batch_size)
    torch.testing.assert_close(apart, together, rtol=0, atol=1e-6)


def test_each_window_alone(context):
    numbers = [3, 11, 4, 0, 8]
    together = rollout(FULL, context, 3, steps=2, members=2, seed=1, windows=numbers)
    for i, number in enumerate(numbers):
        alone = rollout(FULL, context[i : i + 1], 3, steps=2, members=2, seed=1, windows=[number])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-6)


def test_more_members_and_a_longer_horizon_only_add(context):
    small = rollout(FULL, context, 2, steps=2, members=2, seed=1)
    large = rollout(FULL, context, 4, steps=2, members=5, seed=1)
    torch.testing.assert_close(large[:, :2, :2], small, rtol=0, atol=1e-6)


def test_members_differ_and_follow_the_seed(context):
    first, again, other = (rollout(FULL, context, 1, steps=1, members=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[:, 0], first[:, 1])


def test_members_of_a_deterministic_forecast_are_equal(context):
    calls = []

    def counted(x, u):
        calls.append(len(x))
        return nonlinear(x, u)

    forecast = rollout(Dynamics(counted, denoiser), context, 2, steps=2, members=4, seed=0)
    assert forecast.shape[:2] == (5, 4)
    assert all(torch.equal(forecast[:, 0], forecast[:, m]) for m in range(4))
    assert calls == [5] * 4  # each is integrated once


def test_members_are_batched_too(context):
    """Not windows alone: 5 windows of 6 members by 4 are at most 4 forecasts at once."""
    sizes = []

    def counted(x, u):
        sizes.append(len(x))
        return nonlinear(x, u)

    rollout(Dynamics(counted, None, diffusion), context, 1, steps=1, members=6, seed=0, batch_size=4)
    assert sizes == [4] * 7 + [2]


def test_running_out_of_memory_makes_batches_smaller(context):
    def hungry(x, u):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return nonlinear(x, u)

    whole = rollout(FULL, context, 2, steps=2, members=3, seed=1)
    tight = rollout(Dynamics(hungry, denoiser, diffusion, 1.2, 0.8), context, 2, steps=2, members=3, seed=1)
    torch.testing.assert_close(tight, whole, rtol=0, atol=1e-6)


def test_half_precision_stays_inside_the_networks(context):
    """Under autocast the state is integrated in float32: it is only as wrong as the networks' answers are."""
    layer = torch.nn.Conv2d(3 * C, C, 3, padding=1)

    def flow(x, u):
        return layer(x)

    dynamics = Dynamics(flow, None, diffusion)
    full = rollout(dynamics, context, 2, steps=2, members=2, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = rollout(dynamics, context, 2, steps=2, members=2, seed=1)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05


def test_no_gradients(context):
    weight = torch.ones(1, requires_grad=True)
    forecast = rollout(Dynamics(lambda x, u: weight * x[:, -C:]), context, 1, steps=1, members=1, seed=0)
    assert not forecast.requires_grad


@pytest.mark.parametrize("members", [1, 2, 5])
def test_several_models_take_turns_member_by_member(context, members):
    """Each member is what its model alone makes of it: with the same noise, whatever the other models are."""
    models = [FULL, Dynamics(towards_zero, diffusion=diffusion), Dynamics(constant_velocity)]
    settings = {"steps": 2, "seed": 3, "interpolate": 2}
    mixed = rollout(models, context, 3, members=members, **settings)
    for m in range(members):
        alone = rollout(models[m % 3], context, 3, members=members, **settings)
        torch.testing.assert_close(mixed[:, m], alone[:, m], rtol=1e-5, atol=1e-6)
    each = mixed[:, :, -4:]  # go on from where every member is
    starts = torch.cat([each[:, :, 1::2]], 2)
    parts = rollout(models, starts, 1, members=members, first_frame=3, **settings)
    assert parts.shape == (len(context), members, 2, *context.shape[2:])
