"""A window's noise is its own: not that of its company, nor of how many members are asked for."""

import math

import pytest
import torch

from raypipe.sde.brownian import brownian

SHAPES = [(4, 8, 8), (2, 3, 3), (1, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_alone_and_in_company(shape):
    together = brownian(7, [2, 5, 9], 3, 4, 2, 3, shape)
    alone = brownian(7, [5], 3, 4, 2, 3, shape)
    assert torch.equal(alone.increments, together.increments[:, 3:6])
    assert torch.equal(alone.bridge, together.bridge[:, 3:6])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 3])
def test_more_members_change_none(shape, steps):
    few, many = (brownian(7, [2, 5], members, 4, steps, 2, shape) for members in (2, 5))
    for name in ("increments", "bridge"):
        a, b = getattr(few, name).unflatten(1, (2, 2)), getattr(many, name).unflatten(1, (2, 5))
        assert torch.equal(a, b[:, :, :2])


@pytest.mark.parametrize("shape", SHAPES)
def test_readouts_leave_the_increments_alone(shape):
    without, with_some = (brownian(7, [2], 2, 4, 3, readouts, shape) for readouts in (0, 4))
    assert torch.equal(without.increments, with_some.increments)
    assert without.bridge.shape == (0, 2, *shape)


def test_seed_window_frame_and_member_all_matter():
    def noise(seed=0, window=0, frame=0):
        return brownian(seed, [window], 2, frame, 1, 1, (2, 4, 4))

    base = noise()
    for other in (noise(seed=1), noise(window=1), noise(frame=1)):
        assert not torch.equal(base.increments, other.increments)
        assert not torch.equal(base.bridge, other.bridge)
    assert not torch.equal(base.increments[:, 0], base.increments[:, 1])
    assert not torch.equal(base.increments[0], base.bridge[0])


@pytest.mark.parametrize("steps", [1, 4])
def test_variances(steps):
    noise = brownian(0, range(20), 4, 0, steps, 2, (4, 8, 8))
    for values, variance in ((noise.increments, 1 / steps), (noise.bridge, 1.0)):
        assert abs(values.mean().item()) < 5 * math.sqrt(variance / values.numel())
        assert abs(values.var().item() / variance - 1) < 5 * math.sqrt(2 / values.numel())
