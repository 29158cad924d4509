"""The path between two states, and the draws along it."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from raypipe.sde.path import Draws, draw, sample_path, stack, velocity


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_stack_keeps_each_frames_channels_together():
    frames = torch.arange(2 * 3 * 4).view(2, 3, 4, 1, 1)
    assert torch.equal(stack(frames).flatten(), torch.arange(24))
    assert stack(frames).shape == (2, 12, 1, 1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    u=st.one_of(st.just(0.0), st.floats(0, 0.999)),
    sigma=st.sampled_from([0.0, 1e-7, 0.01, 0.5]),
)
def test_velocity_is_what_the_design_defines(seed, u, sigma):
    """v = (X_{t+1} - (1-sigma) X_u) / (1 - (1-sigma) u), of the last frame, wherever on the path."""
    window = torch.randn(2, 4, 3, 2, 2, generator=generator(seed), dtype=torch.float64)
    still = Draws(torch.full((2,), u, dtype=torch.float64), torch.zeros(2, 9, 2, 2, dtype=torch.float64))
    sample = sample_path(window, still, noise_std=0.0, sigma=sigma)
    quotient = (stack(window[:, 1:]) - (1 - sigma) * sample.noisy) / (1 - (1 - sigma) * u)
    # the subtraction and the division lose about 1 / (1 - u) of the precision
    torch.testing.assert_close(sample.velocity, quotient[:, -3:], rtol=0, atol=1e-13 / (1 - u))


def test_path_by_hand():
    # one channel, K = 2, frames 0, 2, 6: from (0, 2) to (2, 6); a quarter of the way, sigma = 0: (0.5, 3)
    window = torch.tensor([0.0, 2.0, 6.0]).view(1, 3, 1, 1, 1)
    draws = Draws(torch.tensor([0.25]), torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
    sample = sample_path(window, draws, noise_std=0.1, sigma=0.0)
    torch.testing.assert_close(sample.noisy.flatten(), torch.tensor([0.6, 2.8]))
    torch.testing.assert_close(sample.noise.flatten(), torch.tensor([0.1, -0.2]))
    assert sample.velocity.flatten().tolist() == [4.0]
    # sigma = 0.5: (1 - 0.125) * (0, 2) + 0.25 * (2, 6) = (0.5, 3.25); v = 6 - 0.5 * 2
    sample = sample_path(window, draws, noise_std=0.0, sigma=0.5)
    torch.testing.assert_close(sample.noisy.flatten(), torch.tensor([0.5, 3.25]))
    assert velocity(window, 0.5).flatten().tolist() == [5.0]


def test_the_path_begins_at_the_state():
    window = torch.randn(1, 3, 2, 2, 2, generator=generator(0))
    sample = sample_path(window, Draws(torch.zeros(1), torch.zeros(1, 4, 2, 2)), noise_std=0.3, sigma=1e-7)
    assert torch.equal(sample.noisy, stack(window[:, :-1]))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_draws_at_zero(share):
    count = 20_000
    times = draw(generator(1), count, (1, 1, 1), share).time
    error = math.sqrt(share * (1 - share) / count)
    assert abs((times == 0).double().mean().item() - share) <= 5 * error + 1e-4  # rand itself is 0 at times
    assert times.min() >= 0
    assert times.max() < 1
    if share < 1:
        rest = times[times > 0]
        assert abs(rest.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / len(rest))


def test_noise_is_standard_normal():
    normal = draw(generator(2), 500, (4, 5, 5), 0.3).normal
    assert abs(normal.mean().item()) < 5 / math.sqrt(normal.numel())
    assert abs(normal.var().item() - 1) < 5 * math.sqrt(2 / normal.numel())


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_slices_are_the_batch(workers):
    """Each worker draws the whole batch and keeps its part: together they see what one would."""
    window = torch.randn(8, 3, 2, 3, 3, generator=generator(3))
    whole = sample_path(window, draw(generator(4), 8, (4, 3, 3), 0.3), noise_std=0.2, sigma=1e-7)
    size = 8 // workers
    parts = []
    for rank in range(workers):
        mine = slice(rank * size, (rank + 1) * size)
        draws = draw(generator(4), 8, (4, 3, 3), 0.3)
        parts.append(sample_path(window[mine], Draws(draws.time[mine], draws.normal[mine]), 0.2, 1e-7))
    for name in ("noisy", "noise", "time", "velocity"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_draws_follow_the_seed_alone():
    first, again, other = (draw(generator(seed), 4, (2, 2, 2), 0.3) for seed in (5, 5, 6))
    assert torch.equal(first.normal, again.normal)
    assert torch.equal(first.time, again.time)
    assert not torch.equal(first.normal, other.normal)
