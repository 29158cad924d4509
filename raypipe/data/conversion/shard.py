"""Making one shard out of its sources: the unit of work of a conversion.

Frames go one by one into a spool file beside the shard, which is then written from a memory map of it. So memory
holds a frame, not a shard; a source that turns out bad in its middle is cut off the spool again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import Source
from raypipe.data.shards import Shards, open_shards
from raypipe.data.shards.reference import write_published
from raypipe.data.shards.writer import Clip, write_shard
from raypipe.data.video.fitting import Fit, Frames, VideoFit
from raypipe.data.video.io import decode, iter_images

LAYOUTS = ("packed", "published")
CLIPS_PER_SHARD = 100
SMALL_SET = 16
"""A small set is cut into this many shards, so that there is work for as many processes."""
DATASET_BYTES = 4096
"""More than HDF5 takes for a dataset beside its content: measured, 3.1 kB for one compressed frame."""
REPORT_FRAMES = 32
"""Progress is told after as many frames."""


@dataclass(frozen=True)
class Options:
    """What is made of the sources. fit: see `Fit`. frame_stride: every how many frames one is kept. min_length: fewer
    frames than this, after striding, are left out. layout: `packed` or `published`."""

    image_size: int = 64
    fit: str = "crop"
    frame_stride: int = 1
    grey: bool = False
    min_length: int = 1
    layout: str = "packed"


@dataclass(frozen=True)
class Task:
    """A shard to be made. path: of the shard, absolute."""

    path: Path
    sources: tuple[Source, ...]
    options: Options


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    rows: clip, source, frames of each clip, in the shard's order. bytes: of the shard, 0 if no clip was
    good and none was written. bad, short, notes: lines for the user, of sources left out as unreadable, left out
    as shorter than wanted, and kept though something is odd.
    """

    rows: tuple[dict[str, Any], ...] = ()
    bytes: int = 0
    bad: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        return sum(row["frames"] for row in self.rows)

    @property
    def sources(self) -> int:
        return len(self.rows) + len(self.bad) + len(self.short)


def plan(folder: Path, sources: Sequence[Source], options: Options) -> list[Task]:
    """The shards of a split: which sources go where follows from their order and number alone."""
    size = min(CLIPS_PER_SHARD, max(1, -(-len(sources) // SMALL_SET)))
    parts = [tuple(sources[i : i + size]) for i in range(0, len(sources), size)]
    digits = max(4, len(str(len(parts))))
    return [Task(folder / f"shard_{k:0{digits}d}.hdf5", part, options) for k, part in enumerate(parts, start=1)]


def convert_shard(task: Task, progress: Callable[[int], None] = lambda frames: None) -> Outcome:
    """Read the sources and write the shard, whole or not at all. progress: told how many frames were added.

    Raises ValueError, naming the shard, if it cannot be written; a bad source is no error but part of the outcome.
    """
    kept: list[tuple[Source, int]] = []
    bad: list[str] = []
    short: list[str] = []
    notes: list[str] = []
    reader = _Reader(task.options, notes.append)
    with _spool(task.path) as (file, path):
        for source in task.sources:
            begin, told = file.tell(), len(notes)
            try:
                length = _copy(reader.frames(source), task, file, progress)
            except _SourceError as error:
                bad.append(str(error))
                length = 0
            else:
                if length < task.options.min_length:
                    short.append(f"{_place(source)}: {length} frames")
                    length = 0
            if length:
                kept.append((source, length))
            else:
                del notes[told:]
                file.seek(begin)
                file.truncate()
        if not kept:
            return Outcome(bad=tuple(bad), short=tuple(short))
        with _writing(task.path):
            file.flush()
            size = task.options.image_size
            clips = _clips(np.memmap(path, np.uint8, "r").reshape(-1, size, size, 3), kept)
            _write(task, clips)
            rows = [{"clip": clip.name, "source": clip.source, "frames": len(clip.frames)} for clip in clips]
            return Outcome(tuple(rows), task.path.stat().st_size, tuple(bad), tuple(short), tuple(notes))


class _SourceError(Exception):
    """A source is bad."""


class _Reader:
    """Frames of sources, fitted; keeps shards open from one clip to the next."""

    def __init__(self, options: Options, note: Callable[[str], None]) -> None:
        self.stride, self.note = options.frame_stride, note
        self.fit = Fit(options.image_size, options.fit, options.grey)
        self._shards: dict[Path, Shards] = {}

    def frames(self, source: Source) -> Iterator[Frames]:
        """Every stride-th frame, uint8 [size, size, 3]. Raises _SourceError."""
        try:
            if source.kind == "video":
                fit = VideoFit(self.fit)
                for i, frame in enumerate(decode(source.path, threads=1, note=self.note)):
                    if i % self.stride == 0:
                        yield fit(frame)
            elif source.kind == "frames":
                for i, image in enumerate(iter_images(source.path, source.suffix)):
                    if i % self.stride == 0:
                        yield self.fit.image(image)
            else:
                yield from self._stored(source)
        except UserError as error:
            raise _SourceError(str(error)) from None

    def _stored(self, source: Source) -> Iterator[Frames]:
        if source.path not in self._shards:
            self._shards[source.path] = open_shards(source.path)
        shards = self._shards[source.path]
        for t in range(0, int(shards.lengths[source.clip]), self.stride):
            yield self.fit.array(shards.frames(source.clip, [t])[0])


def _copy(frames: Iterator[Frames], task: Task, file: BinaryIO, progress: Callable[[int], None]) -> int:
    """Append frames to the spool; how many there were."""
    count = told = 0
    for frame in frames:
        with _writing(task.path):
            file.write(frame.data)
        count += 1
        if count - told == REPORT_FRAMES:
            progress(count - told)
            told = count
    progress(count - told)
    return count


def _clips(frames: Frames, kept: Sequence[tuple[Source, int]]) -> list[Clip]:
    ends = np.cumsum([length for _, length in kept]).tolist()
    return [
        Clip(source.name, frames[end - length : end], source.origin)
        for (source, length), end in zip(kept, ends, strict=True)
    ]


def _write(task: Task, clips: Sequence[Clip]) -> None:
    room = os.statvfs(task.path.parent)
    needed = (1 << 20) + sum(clip.frames.nbytes for clip in clips)
    if task.options.layout == "published":
        needed += DATASET_BYTES * sum(len(clip.frames) for clip in clips)
    # HDF5 does not recover from a disk that is full, and may even crash, so look before.
    if room.f_bavail * room.f_frsize < needed:
        raise UserError(f"{task.path}: cannot be written (No space left on device); free some and run the same again")
    if task.options.layout == "packed":
        write_shard(task.path, clips)
    else:
        write_published(task.path, clips)


def _place(source: Source) -> str:
    return f"{source.path}: clip {source.name}" if source.kind == "shards" else str(source.path)


@contextmanager
def _spool(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A file for raw frames, gone at the end; what a killed process leaves, the next run removes."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = path.with_name(f".{path.name}.{os.getpid()}.spool.tmp")
        file = spool.open("wb")
    try:
        yield file, spool
    finally:
        spool.unlink(missing_ok=True)
        # What is still in the buffer may not fit on a full disk, and is not wanted any more.
        with suppress(OSError):
            file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn what a disk does into one line."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be written ({reason}); the same command goes on from here") from None
