"""The bodies of the demo that a frame still shows."""

import numpy as np
import pytest
import torch

from raypipe.data.demo import make_clip
from raypipe.data.frames import to_float
from raypipe.metrics.bodies import kept_bodies


def clip(seed: int) -> torch.Tensor:
    return to_float(torch.from_numpy(make_clip(np.random.default_rng(seed), 9, 64, 0.03)))


def test_it_counts_the_two_or_three_bodies_of_the_demo_and_keeps_them_in_true_futures() -> None:
    shares, counts = [], []
    for seed in range(40):
        frames = clip(seed)
        share, count = kept_bodies(frames, frames[0])
        assert share[0] == 1
        shares.append(share[-1].item())
        counts.append(count)
    assert set(counts) == {2, 3}
    assert np.mean(shares) > 0.98


def test_a_body_that_fades_grows_or_changes_color_is_not_kept() -> None:
    frame = torch.full((3, 64, 64), -0.8)

    def painted(color: tuple[float, float, float], size: int) -> torch.Tensor:
        out = frame.clone()
        out[:, 5 : 5 + size, 5 : 5 + size] = torch.tensor(color)[:, None, None]
        out[:, 40:55, 40:55] = torch.tensor((-0.9, -0.9, 0.9))[:, None, None]  # a second body, blue
        return out

    red = (0.9, -0.8, -0.8)
    last = painted(red, 16)
    others = [
        painted(red, 16),
        painted(red, 9),  # a third of the area
        painted(red, 30),  # 3.5 times
        painted((-0.8, 0.9, -0.8), 16),  # green
        painted((-0.5, -0.8, -0.8), 16),  # dark
        torch.zeros(3, 64, 64),
    ]
    share, count = kept_bodies(torch.stack(others), last)
    assert count == 2
    assert share.tolist() == [1.0, 0.5, 0.5, 0.5, 0.5, 0.0]


def test_a_frame_without_bodies_has_none_to_keep() -> None:
    share, count = kept_bodies(torch.rand(2, 5, 3, 32, 32) * 2 - 1, torch.full((3, 32, 32), -0.9))
    assert count == 0
    assert share.tolist() == [[0.0] * 5] * 2


@pytest.mark.parametrize("turn", [0.0, 1 / 3, 2 / 3])
def test_red_on_either_side_of_the_circle_is_one_body(turn: float) -> None:
    frame = torch.full((3, 32, 32), -1.0)
    channels = [int(3 * turn + k) % 3 for k in range(3)]
    frame[channels[0], 4:20, 4:20] = 0.9
    frame[channels[1], 4:20, 4:12] = -0.8
    frame[channels[2], 4:20, 12:20] = -0.8
    assert kept_bodies(frame, frame)[1] == 1
