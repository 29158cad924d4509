"""The input of `raypipe.generate`: a video file, a folder of frames, or a clip of a folder of shards.

Videos and images are prepared as the conversion prepared the videos that the model was trained on.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import av
import numpy as np

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import Source
from raypipe.data.conversion.preprocessing import Preprocessing, every, read_preprocessing
from raypipe.data.conversion.shard import Options, SourceReader
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder, RemoteFolder
from raypipe.data.shards.writer import INDEX, PATTERN
from raypipe.data.video.fitting import Fit, Frames
from raypipe.forecast.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """An input clip.

    frames: uint8 [T, S, S, 3], one frame interval apart, prepared for the model. fps: their rate. prepared: what was
    done to the frames of the input, for the user.
    """

    name: str
    frames: Frames
    fps: float
    prepared: str


FPS = 8.0
"""Frame rate assumed when the input has none."""


MOST_FRAMES = 36
"""Most frames that are predicted if --frames is not given."""


IMAGES = ("png", "jpg", "jpeg", "bmp", "webp")


def read_clip(path: Folder, manifest: Manifest, horizon: int | None, number: int | None = None) -> Clip:
    """Read the first K + horizon frames (fewer if the input ends) of an input, one frame interval apart, for a model.

    path: a video file, a folder of images, or a folder of shards, of which clip `number` is read. horizon: None for
    `MOST_FRAMES`. Raises UserError if the input cannot be read or has fewer than K frames.
    """
    given, stride = manifest.num_input_frames, manifest.frame_stride
    found = _open(path, manifest, number)
    stop = (given + (horizon or MOST_FRAMES) - 1) * stride + 1
    taken = list(islice(found.frames, 0, stop, stride))
    if len(taken) < given:
        apart = f", {found.stride * stride} apart" if found.stride * stride > 1 else ""
        raise UserError(
            f"{path}: too short: it has {len(taken)} frames{apart}, but the model needs {given} to start from"
        )
    fps = FPS if found.fps is None else found.fps / stride
    between = f"; of these, {every(stride)} (dataset.frame_stride)" if stride > 1 else ""
    return Clip(found.name, np.stack(taken), fps, found.prepared + between)


@dataclass(frozen=True)
class _Input:
    """An opened input. frames: as the frames of the model's dataset. fps: their rate, None if unknown. stride: number
    of frames of the input from one of them to the next."""

    name: str
    fps: float | None
    frames: Iterator[Frames]
    stride: int
    prepared: str


def _open(path: Folder, manifest: Manifest, number: int | None) -> _Input:
    is_shards = isinstance(path, RemoteFolder) or (
        path.is_dir() and ((path / INDEX).is_file() or any(path.glob(PATTERN)))
    )
    if number is not None and not is_shards:
        raise UserError(f"--clip: only for a folder of shards, which {path} is not")
    if is_shards or isinstance(path, RemoteFolder):
        return _open_shard(path, manifest, number or 0)
    if not path.exists():
        raise UserError(f"{path}: no such video file or folder")
    if path.is_dir():
        held = {entry.suffix.lower().lstrip(".") for entry in path.iterdir() if not entry.name.startswith(".")}
        extension = next((suffix for suffix in IMAGES if suffix in held), None)
        if extension is None:
            raise UserError(
                f"{path}: has neither shards nor images (.{', .'.join(IMAGES)}); give a video file, a folder "
                "of images, or a split of a dataset, such as DATASET/test"
            )
        source, rate = Source(path.resolve().name, path, "frames", str(path), (0, 0, 0), f".{extension}"), None
    else:
        source, rate = Source(path.stem, path, "video", str(path), (0, 0, 0)), _rate(path)
    return _prepare(source, rate, manifest)


def _prepare(source: Source, rate: float | None, manifest: Manifest) -> _Input:
    """A video or folder of images, read as a conversion reads it."""
    known = manifest.preprocessing
    wanted = Preprocessing(manifest.image_size) if known is None else replace(known, size=manifest.image_size)
    frames = SourceReader(Options.to_repeat(wanted), logger.warning).frames(source)
    rate = wanted.fps or rate
    how = "as the model's training videos" if known else "assumed, as the model does not say how its videos were"
    fps = None if rate is None else rate / wanted.frame_stride
    return _Input(source.name, fps, frames, wanted.frame_stride, f"{wanted} ({how})")


def _open_shard(path: Folder, manifest: Manifest, number: int) -> _Input:
    """A clip of a folder of shards, of which only what their own conversion did not do is done."""
    shards = open_shards(path)
    if not 0 <= number < len(shards):
        raise UserError(f"--clip: must be from 0 to {len(shards) - 1}, the clips of {path}, not {number}")
    if len(shards.frame_shape) != 3 or shards.frame_shape[2] != 3 or shards.dtype != np.uint8:
        raise UserError(
            f"{path}: must contain uint8 [H, W, 3] frames, not {shards.dtype} {list(shards.frame_shape)}; give a split "
            "of a dataset, such as DATASET/test"
        )
    wanted, done = manifest.preprocessing, read_preprocessing(path)
    stride, fit, prepared = 1, Fit(manifest.image_size), "as stored in the shards"
    if wanted is not None and done is not None and wanted != done:
        stride, rest = divmod(wanted.frame_stride, done.frame_stride)
        if rest:
            raise UserError(
                f"{path}: has {every(done.frame_stride)} of its videos, but the model was trained on "
                f"{every(wanted.frame_stride)}; give a video, or shards with all frames"
            )
        fit = Fit(manifest.image_size, wanted.fit, wanted.grey)
        prepared = f"from shards with {done} to {wanted}, as the model's training videos, as far as possible"
    name = re.sub(r"[^\w.-]", "_", shards.names[number])
    numbers = range(0, int(shards.lengths[number]), stride)
    return _Input(name, None, (fit.array(shards.frames(number, [t])[0]) for t in numbers), stride, prepared)


def _rate(path: Path) -> float | None:
    """Frames per second of a video file; None if unknown."""
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except (av.FFmpegError, OSError):
        return None  # reported by the reader, which opens the file next
    return float(rate) if rate else None
