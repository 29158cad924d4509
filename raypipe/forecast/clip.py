"""The input of `raypipe.generate`: a video file, a folder of frames, or a clip of a folder of shards."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import find_clips, is_shard_folder, readable, source_of
from raypipe.data.conversion.reader import Sampling, SourceReader
from raypipe.data.conversion.source import Source
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder, RemoteFolder
from raypipe.data.video.fitting import Fit, Frames
from raypipe.forecast.manifest import Manifest


@dataclass(frozen=True)
class Clip:
    """An input clip.

    frames: uint8 [T, S, S, 3], one frame interval apart, resized for the model. fps: their rate. notes: messages about
    what is odd.
    """

    name: str
    frames: Frames
    fps: float
    notes: tuple[str, ...] = ()


FPS = 8.0
"""Frame rate assumed when the input has none."""


MOST_FRAMES = 36
"""Most frames that are predicted if --frames is not given."""


def read_clip(path: Folder, manifest: Manifest, horizon: int | None, number: int | None = None) -> Clip:
    """Read the first K + horizon frames (fewer if the input ends) of an input, `frame_stride` apart, for a model.

    path: a file or folder that the conversion reads as a clip, or a folder of several, or of shards, of which clip
    `number` is read. horizon: None for `MOST_FRAMES`. Raises UserError if the input cannot be read or has fewer than K
    frames.
    """
    given, stride = manifest.num_input_frames, manifest.frame_stride
    notes: list[str] = []
    reader = SourceReader(Sampling(Fit(manifest.image_size), stride), notes.append)
    name, frames = _open(path, number, reader)
    taken = list(islice(frames, given + (horizon or MOST_FRAMES)))
    if len(taken) < given:
        apart = f", {stride} apart" if stride > 1 else ""
        raise UserError(
            f"{path}: too short: it has {len(taken)} frames{apart}, but the model needs {given} to start from"
        )
    rate = FPS if reader.rate is None else reader.rate / stride
    return Clip(name, np.stack(taken), rate, tuple(notes))


def _open(path: Folder, number: int | None, reader: SourceReader) -> tuple[str, Iterator[Frames]]:
    """Name of an input, and iterator over its frames."""
    if isinstance(path, RemoteFolder) or is_shard_folder(path):
        return _open_shard(path, number or 0, reader)
    if readable(str(path)) != str(path):
        raise UserError(f"{readable(str(path))}: its name is not UTF-8; rename it")
    if path.is_dir():
        source = _choose(path, number, reader)
        name = re.sub(r"[^\w.-]", "_", source.identity)
        return name, reader.frames(source)
    if number is not None:
        raise UserError(f"--clip: only for a folder of shards or clips, which {path} is not")
    if not path.exists():
        raise UserError(f"{path}: no such video file or folder")
    return path.stem, reader.frames(source_of(path))


def _choose(folder: Path, number: int | None, reader: SourceReader) -> Source:
    """Clip `number` (None: the first) below a folder."""
    found = find_clips(folder)
    clips = [source for source in found.sources if source.stamp[0]]
    if not clips:
        raise UserError(
            found.bad[0]
            if found.bad
            else f"{folder}: has neither shards nor images nor videos; give a video, a folder of images, or a split of"
            " a dataset, such as DATASET/test"
        )
    if not 0 <= (number or 0) < len(clips):
        raise UserError(f"--clip: must be from 0 to {len(clips) - 1}, the clips of {folder}, not {number}")
    for text in (*found.bad, *found.notes):
        reader.note(text)
    if number is None and len(clips) > 1:
        reader.note(f"{folder}: has {len(clips)} clips, of which the first is taken; --clip chooses another")
    return clips[number or 0]


def _open_shard(path: Folder, number: int, reader: SourceReader) -> tuple[str, Iterator[Frames]]:
    """As `_open`, for a clip of a folder of shards."""
    shards = open_shards(path)
    if not 0 <= number < len(shards):
        raise UserError(f"--clip: must be from 0 to {len(shards) - 1}, the clips of {path}, not {number}")
    if len(shards.frame_shape) != 3 or shards.frame_shape[2] != 3 or shards.dtype != np.uint8:
        raise UserError(
            f"{path}: must contain uint8 [H, W, 3] frames, not {shards.dtype} {list(shards.frame_shape)}; give a split "
            "of a dataset, such as DATASET/test"
        )
    return re.sub(r"[^\w.-]", "_", shards.names[number]), reader.stored(shards, number)
