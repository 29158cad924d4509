"""The input of `raypipe.generate`: a video file, a folder of frames, or a clip of a folder of shards."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np

from raypipe.common.errors import UserError
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder, RemoteFolder
from raypipe.data.shards.writer import INDEX, PATTERN
from raypipe.data.video.io import Frames, iter_frames, iter_video, resize
from raypipe.forecast.manifest import Manifest


@dataclass(frozen=True)
class Clip:
    """An input clip. frames: uint8 [T, S, S, 3], one frame interval apart, resized for the model; fps: their rate."""

    name: str
    frames: Frames
    fps: float


FPS = 8.0
"""Frame rate assumed when the input has none."""


MOST_FRAMES = 36
"""Most frames that are predicted if --frames is not given."""


IMAGES = ("png", "jpg", "jpeg", "bmp", "webp")


def read_clip(path: Folder, manifest: Manifest, horizon: int | None, number: int | None = None) -> Clip:
    """Read the first K + horizon frames (fewer if the input ends) of an input, `frame_stride` apart, for a model.

    path: a video file, a folder of images, or a folder of shards, of which clip `number` is read. horizon: None for
    `MOST_FRAMES`. Raises UserError if the input cannot be read or has fewer than K frames.
    """
    given, stride, size = manifest.num_input_frames, manifest.frame_stride, manifest.image_size
    stop = (given + (horizon or MOST_FRAMES) - 1) * stride + 1
    name, fps, frames = _open(path, number)
    taken = [resize(frame, size) for frame in islice(frames, 0, stop, stride)]
    if len(taken) < given:
        apart = f", {stride} apart" if stride > 1 else ""
        raise UserError(
            f"{path}: too short: it has {len(taken)} frames{apart}, but the model needs {given} to start from"
        )
    return Clip(name, np.stack(taken), FPS if fps is None else fps / stride)


def _open(path: Folder, number: int | None) -> tuple[str, float | None, Iterator[Frames]]:
    """Name, frame rate (None: unknown) and iterator over the frames, uint8 [H, W, 3], of an input."""
    is_shards = isinstance(path, RemoteFolder) or (
        path.is_dir() and ((path / INDEX).is_file() or any(path.glob(PATTERN)))
    )
    if number is not None and not is_shards:
        raise UserError(f"--clip: only for a folder of shards, which {path} is not")
    if is_shards or isinstance(path, RemoteFolder):
        return _open_shard(path, number or 0)
    if path.is_dir():
        held = {entry.suffix.lower().lstrip(".") for entry in path.iterdir() if not entry.name.startswith(".")}
        extension = next((suffix for suffix in IMAGES if suffix in held), None)
        if extension is None:
            raise UserError(
                f"{path}: has neither shards nor images (.{', .'.join(IMAGES)}); give a video file, a folder "
                "of images, or a split of a dataset, such as DATASET/test"
            )
        return path.resolve().name, None, iter_frames(path, extension)
    if not path.exists():
        raise UserError(f"{path}: no such video file or folder")
    return path.stem, _rate(path), iter_video(path)


def _open_shard(path: Folder, number: int) -> tuple[str, float | None, Iterator[Frames]]:
    """Name, frame rate (None: unknown) and frames of a clip of a folder of shards."""
    shards = open_shards(path)
    if not 0 <= number < len(shards):
        raise UserError(f"--clip: must be from 0 to {len(shards) - 1}, the clips of {path}, not {number}")
    if len(shards.frame_shape) != 3 or shards.frame_shape[2] != 3 or shards.dtype != np.uint8:
        raise UserError(
            f"{path}: must contain uint8 [H, W, 3] frames, not {shards.dtype} {list(shards.frame_shape)}; give a split "
            "of a dataset, such as DATASET/test"
        )
    name = re.sub(r"[^\w.-]", "_", shards.names[number])
    return name, None, (shards.frames(number, [t])[0] for t in range(int(shards.lengths[number])))


def _rate(path: Path) -> float | None:
    """Frames per second of a video file; None if unknown."""
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except (av.FFmpegError, OSError):
        return None  # reported by iter_video, which opens the file next
    return float(rate) if rate else None
