"""The input of `raypipe.generate`: what the conversion reads as a clip, or a clip of a folder of shards.

Videos and images are prepared as the conversion prepared the videos that the model was trained on.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import find_clips, is_shard_folder, source_of
from raypipe.data.conversion.holders import holds_clips
from raypipe.data.conversion.preprocessing import Preprocessing, every, read_preprocessing
from raypipe.data.conversion.reader import Sampling, SourceReader
from raypipe.data.conversion.source import Source
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder, RemoteFolder
from raypipe.data.video.fitting import Fit, Frames
from raypipe.data.video.folders import readable
from raypipe.forecast.manifest import Manifest


@dataclass(frozen=True)
class Clip:
    """An input clip.

    frames: uint8 [T, S, S, 3], one frame interval apart, prepared for the model. fps: their rate. prepared: what was
    done to the frames of the input, for the user. notes: messages about what is odd.
    """

    name: str
    frames: Frames
    fps: float
    prepared: str
    notes: tuple[str, ...] = ()


FPS = 8.0
"""Frame rate assumed when the input has none."""


MOST_FRAMES = 36
"""Most frames that are predicted if --frames is not given."""


def read_clip(path: Folder, manifest: Manifest, horizon: int | None, number: int | None = None) -> Clip:
    """Read the first K + horizon frames (fewer if the input ends) of an input, one frame interval apart, for a model.

    path: a file or folder that the conversion reads as a clip, or a folder of several, or of shards, of which clip
    `number` is read. horizon: None for `MOST_FRAMES`. Raises UserError if the input cannot be read or has fewer than K
    frames.
    """
    given, stride = manifest.num_input_frames, manifest.frame_stride
    notes: list[str] = []
    found = _open(path, manifest, number, notes.append)
    stop = (given + (horizon or MOST_FRAMES) - 1) * stride + 1
    taken = list(islice(found.frames, 0, stop, stride))
    if len(taken) < given:
        apart = f", {found.stride * stride} apart" if found.stride * stride > 1 else ""
        raise UserError(
            f"{path}: too short: it has {len(taken)} frames{apart}, but the model needs {given} to start from"
        )
    rate = found.rate()
    between = f"; of these, {every(stride)} (dataset.frame_stride)" if stride > 1 else ""
    return Clip(
        found.name,
        np.stack(taken),
        FPS if rate is None else rate / found.stride / stride,
        found.prepared + between,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Input:
    """An opened input. frames: as the frames of the model's dataset. stride: number of frames of the input from one of
    them to the next. rate: frames per second of the input, None if unknown; known once a frame has been read."""

    name: str
    frames: Iterator[Frames]
    stride: int
    prepared: str
    rate: Callable[[], float | None] = lambda: None


def _open(path: Folder, manifest: Manifest, number: int | None, note: Callable[[str], None]) -> _Input:
    if isinstance(path, RemoteFolder) or is_shard_folder(path):
        return _open_shard(path, manifest, number or 0)
    if readable(str(path)) != str(path):
        raise UserError(f"{readable(str(path))}: its name is not UTF-8; rename it")
    known = manifest.preprocessing
    wanted = Preprocessing(manifest.image_size) if known is None else replace(known, size=manifest.image_size)
    how = "as the model's training videos" if known else "assumed, as the model does not say how its videos were"
    fit = Fit(wanted.size, wanted.fit, wanted.grey)
    reader = SourceReader(Sampling(fit, wanted.frame_stride, wanted.fps, wanted.white), note)
    if holds_clips(path):
        source = _choose(path, number, reader)
        name = re.sub(r"[^\w.-]", "_", source.identity)
    elif number is not None:
        raise UserError(f"--clip: only for a folder of shards or clips, or a file of several, which {path} is not")
    elif not path.exists():
        raise UserError(f"{path}: no such video file or folder")
    elif not path.is_file():  # reading a pipe could wait for ever
        raise UserError(f"{path}: neither a file nor a folder; save the video to a file")
    else:
        source, name = source_of(path), path.stem
    return _Input(name, reader.frames(source), wanted.frame_stride, f"{wanted} ({how})", lambda: reader.rate)


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
    return _Input(name, (fit.array(shards.frames(number, [t])[0]) for t in numbers), stride, prepared)
