"""A forecast's noise is its own: a function of seed, window, member, frame and time, with Brownian motion's law."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.sde.brownian import _mix, brownian, forecast_keys, standard_normal

SHAPE = (2, 3, 3)


def keys(seed, windows, members):
    return forecast_keys(seed, torch.tensor(windows), torch.tensor(members))


def grid(n):
    return [Fraction(k, n) for k in range(1, n + 1)]


def path(times, seed=7, windows=(2,), members=(1,), frame=4, shape=SHAPE):
    """W at `times`, [len(times), b, *shape]."""
    return torch.stack(brownian(keys(seed, windows, members), frame, shape)(times))


def test_splitmix_is_the_published_one():
    """The first two words after the state 1234567, as in the reference implementation's test (Vigna 2015)."""
    golden = 0x9E3779B97F4A7C15 - (1 << 64)
    words = _mix(torch.tensor([1234567]) + torch.tensor([1, 2]) * golden)
    assert [w % (1 << 64) for w in words.tolist()] == [6457827717110365317, 3203168211198807973]


def test_normals_are_normal():
    """Moments to the fourth, and the share beyond 3, over 2^20 values, within 5 standard errors."""
    drawn = standard_normal(keys(0, range(4096), [0] * 4096), 256).double()
    n = drawn.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean().item() - moment) < 5 * math.sqrt(variance / n), power
    beyond = math.erfc(3 / math.sqrt(2))
    assert abs((drawn.abs() > 3).double().mean().item() - beyond) < 5 * math.sqrt(beyond / n)
    assert torch.isfinite(drawn).all()


def test_normals_of_one_key_and_of_neighbours_are_unrelated():
    drawn = standard_normal(keys(0, [w for w in range(64) for _ in range(8)], [*range(8)] * 64), 256)
    correlation = torch.corrcoef(drawn)[~torch.eye(512, dtype=torch.bool)]
    assert correlation.abs().max() < 6 / math.sqrt(256)
    assert abs(correlation.std().item() * math.sqrt(256) - 1) < 0.02
    among_values = torch.corrcoef(drawn.T)[~torch.eye(256, dtype=torch.bool)]
    assert among_values.abs().max() < 6 / math.sqrt(512)


@pytest.mark.parametrize("count", [1, 2, 3, 255, 256])
def test_as_many_normals_as_asked_for(count):
    drawn = standard_normal(keys(0, [0, 1], [0, 0]), count)
    assert drawn.shape == (2, count) and drawn.dtype == torch.float32


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 1, 1)])
def test_a_forecast_alone_and_in_company(shape):
    together = path(grid(3), windows=(2, 5, 9), members=(0, 1, 7), shape=shape)
    assert torch.equal(path(grid(3), windows=(5,), members=(1,), shape=shape), together[:, 1:2])


def test_seed_window_member_and_frame_all_matter():
    others = [path([Fraction(1)], **change) for change in (
        {}, {"seed": 8}, {"windows": (3,)}, {"members": (0,)}, {"frame": 5}, {"windows": (1,), "members": (2,)},
        {"seed": -7}, {"seed": 7 + 2**64},
    )]  # fmt: skip
    for i, one in enumerate(others):
        assert all(not torch.equal(one, other) for other in others[:i])


@settings(max_examples=60, deadline=None)
@given(
    asked=st.sets(st.builds(lambda q, p: Fraction(p % q + 1, q), st.integers(1, 12), st.integers(0, 11)), min_size=1),
    more=st.sets(st.builds(lambda q, p: Fraction(p % q + 1, q), st.integers(1, 12), st.integers(0, 11))),
)
def test_the_value_at_a_time_does_not_depend_on_what_else_is_asked(asked, more):
    alone, all_times = sorted(asked), sorted(asked | more)
    together = path(all_times)
    assert torch.equal(path(alone), together[[all_times.index(t) for t in alone]])


@pytest.mark.parametrize(("coarse", "fine"), [(1, 2), (2, 6), (3, 12), (8, 32), (1, 10)])
def test_fine_increments_sum_to_the_coarse(coarse, fine):
    def increments(n):
        return torch.stack(brownian(keys(0, range(20), [0] * 20), 0, SHAPE)(grid(n))).diff(
            dim=0, prepend=torch.zeros(1, 20, *SHAPE)
        )

    summed = increments(fine).unflatten(0, (coarse, fine // coarse)).sum(1)
    torch.testing.assert_close(summed, increments(coarse), rtol=0, atol=2e-6)


def test_covariance_is_that_of_brownian_motion():
    """E W_s W_t = min(s, t), at times whose Farey ancestors are few, many, on one side or on both."""
    times = [Fraction(1, 24), Fraction(1, 7), Fraction(2, 9), Fraction(1, 3), Fraction(2, 5), Fraction(1, 2),
             Fraction(11, 16), Fraction(23, 24), Fraction(1)]  # fmt: skip
    values = path(times, windows=[*range(4000)], members=[0] * 4000, shape=(50,)).flatten(1).double()
    n, t = values.shape[1], torch.tensor([float(time) for time in times], dtype=torch.float64)
    least = torch.minimum(t[:, None], t)
    error = torch.sqrt((t[:, None] * t + least.square()) / n)  # of a product of two normals
    assert ((values @ values.T / n - least).abs() < 5 * error).all()


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_increments_are_independent(steps):
    values = path(grid(steps), windows=[*range(2000)], members=[0] * 2000, shape=(50,)).flatten(1).double()
    increments = values.diff(dim=0, prepend=torch.zeros(1, values.shape[1], dtype=torch.float64))
    n, expected = increments.shape[1], torch.eye(steps, dtype=torch.float64) / steps
    assert ((increments @ increments.T / n - expected).abs() < 5 * math.sqrt(2 / n) / steps).all()


def test_a_deep_time():
    """1/2000 lies 1999 fractions below 1: deeper than a recursion may go."""
    values = path([Fraction(1, 2000)], windows=[*range(500)], members=[0] * 500, shape=(4,))
    assert values.var().item() == pytest.approx(1 / 2000, rel=5 * math.sqrt(2 / 2000))
