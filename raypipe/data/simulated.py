"""The built-in datasets, `demo` and `smmnist`, whose clips are simulated on first use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypipe.common.errors import UserError
from raypipe.config import Demo
from raypipe.data import demo, moving_mnist
from raypipe.data.shards import open_shards
from raypipe.data.shards.writer import INDEX, ShardWriter
from raypipe.data.splits import SPLITS, Split

MakeClip = Callable[[np.random.Generator], NDArray[np.uint8]]
"""Simulates a clip, [frames, image_size, image_size, 3]."""


def make_simulated(
    root: Path, name: str, settings: Demo, image_size: int, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write the splits `<root>/{train,val,test}/` of the built-in dataset `name`. Equal arguments give equal bytes.

    progress: called with (number of finished clips, total number of clips). A finished split is kept, an unfinished one
    is written again. Raises UserError if a finished split was made with other settings, or a package is missing.
    """
    counts = dict(zip(SPLITS, (settings.train_clips, settings.val_clips, settings.test_clips), strict=True))
    seeds = dict(zip(SPLITS, np.random.SeedSequence(settings.seed).spawn(len(SPLITS)), strict=True))
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        folder, key = root / split, _key(name, split, count, settings, image_size)
        if (folder / INDEX).is_file():
            found = open_shards(folder).key
            if found != key:
                raise UserError(f"{folder}: made with other settings ({found or 'videos'}) than {key}; delete it")
            done += count
            continue
        make_clip = clip_maker(name, split, settings, image_size)
        with ShardWriter(folder, key=key) as writer:
            for i, seed in enumerate(seeds[split].spawn(count)):
                writer.add(f"{split}_{i:05d}", make_clip(np.random.default_rng(seed)), source=name)
                done += 1
                if progress is not None:
                    progress(done, total)


def check_packages(name: str) -> None:
    """Raise UserError if a package that a built-in dataset needs is missing."""
    if name == "smmnist":
        moving_mnist.find_digits()


def _key(name: str, split: Split, count: int, settings: Demo, image_size: int) -> str:
    """What a split depends on."""
    kicks = {"kick": settings.kick_probability} if name == "demo" else {}
    of = {"clips": count, "frames": settings.clip_frames, **kicks, "size": image_size}
    return f"{name} {json.dumps({**of, 'seed': settings.seed, 'split': split})}"


def clip_maker(name: str, split: Split, settings: Demo, image_size: int) -> MakeClip:
    """What simulates the clips of a split of the built-in dataset `name`."""
    frames = settings.clip_frames
    if name == "smmnist":
        digits = moving_mnist.read_digits(split)
        return lambda rng: moving_mnist.make_clip(rng, digits, frames, image_size)
    return lambda rng: demo.make_clip(rng, frames, image_size, settings.kick_probability)
