"""The built-in dataset: equal bytes from equal seeds, always in motion, inside the box."""

import numpy as np
import pymunk
import pytest

from raypipe.config import Demo
from raypipe.data import demo as module
from raypipe.data.demo import BOX, SPEED, make_clip
from raypipe.data.shards import open_shards
from raypipe.data.simulated import make_simulated

SMALL = Demo(train_clips=5, val_clips=2, test_clips=3, clip_frames=6)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def test_equal_seeds_give_equal_bytes(tmp_path):
    make_simulated(tmp_path / "a", "demo", SMALL, 32)
    make_simulated(tmp_path / "b", "demo", SMALL, 32)
    make_simulated(tmp_path / "c", "demo", Demo(5, 2, 3, 6, seed=1), 32)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_splits_shapes_and_progress(tmp_path):
    calls = []
    make_simulated(tmp_path, "demo", SMALL, 32, lambda done, total: calls.append((done, total)))
    assert calls == [(i, 10) for i in range(1, 11)]
    splits = {split: open_shards(tmp_path / split) for split in ("train", "val", "test")}
    assert [len(shards) for shards in splits.values()] == [5, 2, 3]
    assert splits["train"].clip(0).shape == (6, 32, 32, 3)
    assert not np.array_equal(splits["train"].clip(0), splits["val"].clip(0))


def test_an_interrupted_split_is_made_anew_and_a_finished_one_kept(tmp_path):
    make_simulated(tmp_path / "whole", "demo", SMALL, 32)

    def interrupt(done, total):
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_simulated(tmp_path / "a", "demo", SMALL, 32, interrupt)
    assert sorted(contents(tmp_path / "a")) == ["train/index.parquet", "train/shard_0001.hdf5"]
    kept = (tmp_path / "a" / "train" / "shard_0001.hdf5").stat().st_mtime_ns
    make_simulated(tmp_path / "a", "demo", SMALL, 32)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")
    assert (tmp_path / "a" / "train" / "shard_0001.hdf5").stat().st_mtime_ns == kept


def test_other_settings_are_not_mistaken_for_these(tmp_path):
    make_simulated(tmp_path, "demo", SMALL, 32)
    with pytest.raises(ValueError, match="train: made with other settings"):
        make_simulated(tmp_path, "demo", SMALL, 64)


def test_nothing_rests_and_nothing_escapes():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        space = pymunk.Space()
        module._add_walls(space)
        bodies = module._add_bodies(space, rng)
        for _ in range(200):
            module._advance(space, bodies, rng, 0.03)
            for item in bodies:
                assert SPEED[0] - 1e-6 <= item.body.velocity.length <= SPEED[1] + 1e-6
                assert all(0 < x < BOX for x in item.body.position)


def test_frames_change_and_kicks_change_the_future():
    calm = make_clip(np.random.default_rng(0), 24, 64, 0.0)
    wild = make_clip(np.random.default_rng(0), 24, 64, 1.0)
    np.testing.assert_array_equal(calm[0], wild[0])
    assert np.abs(calm[-1].astype(int) - wild[-1]).mean() > 2
    steps = np.abs(np.diff(calm.astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert steps.min() > 0.5
    assert calm.max() > 200
    assert np.median(calm) < 60
