"""Baseline: an independent implementation of how the reference code writes and reads the reference layout.

The layout is a folder of files shard_0001.hdf5, ... with a dataset `<clip>/<frame>` for each frame, uint8 [H, W, 3],
compressed with lzf, and a dataset `len/<clip>` with the number of frames of each clip.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Frames = NDArray[np.uint8]


def write_published(path: Path, clips: Iterable[Iterable[Frames]]) -> None:
    """Write a shard. clips: for each clip an iterable of frames, uint8 [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for number, clip in enumerate(clips):
            count = 0
            for frame in clip:
                file.create_dataset(f"{number}/{count}", data=frame, compression="lzf")
                count += 1
            file[f"len/{number}"] = count


def read_image(path: Path) -> Frames:
    """Read an image as the reference code does: the pixels become Python tuples, then an array."""
    with Image.open(path) as image:
        pixels: Any = image.getdata()
        return np.array(pixels, dtype=np.uint8).reshape(image.height, image.width, 3)


def convert_published(task: tuple[Path, Sequence[Path]]) -> None:
    """Convert folders with images 0.png, 1.png, ... to a shard. task: path of the shard, folders."""
    path, folders = task
    write_published(
        path, ((read_image(folder / f"{t}.png") for t in range(len(list(folder.iterdir())))) for folder in folders)
    )


class PublishedWindows:
    """Map-style dataset for torch's DataLoader. An item is a window at a random start of a clip.

    As in the reference code, each access opens the file and reads `read` frames, of which it uses the first `window`.
    items: number of items of an epoch.
    """

    def __init__(self, folder: Path, items: int, window: int, read: int = 40) -> None:
        self.items, self.window, self.read = items, window, read
        self.clips: list[tuple[str, str, int]] = []
        for path in sorted(folder.glob("shard_*.hdf5")):
            with h5py.File(path, "r") as file:
                self.clips += [(str(path), name, int(file["len"][name][()])) for name in file["len"]]

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, item: int) -> Frames:
        path, name, length = self.clips[item % len(self.clips)]
        start = np.random.default_rng(item).choice(length - self.read)
        with h5py.File(path, "r") as file:
            clip = file[name]
            frames = np.stack([clip[str(t)][()] for t in range(start, start + self.read)])
        return frames[: self.window]
