"""Convert the sources of one shard: the unit of work of a conversion.

Frames are written one by one to a temporary spool file next to the shard; the shard is then written from a memory map
of it. Memory thus holds one frame, not a whole shard, and the frames of a source that fails halfway are truncated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raypipe.common.errors import UserError
from raypipe.data.conversion.find import Source
from raypipe.data.conversion.preprocessing import Preprocessing
from raypipe.data.shards import Shards, open_shards
from raypipe.data.shards.reference import write_reference
from raypipe.data.shards.writer import Clip, write_shard
from raypipe.data.video.fitting import Fit, Frames, VideoFit
from raypipe.data.video.io import decode, iter_images

LAYOUTS = {"packed": "packed", "reference": "published", "published": "published"}
"""Values of --layout, and the `Options.layout` of each. The records of conversions store `published`."""
CLIPS_PER_SHARD = 100
SMALL_SET = 16
"""Number of shards of a small split, so that this many processes have work."""
DATASET_BYTES = 4096
"""Upper bound on HDF5's overhead per dataset in bytes: 3.1 kB measured for one compressed frame."""
REPORT_FRAMES = 32
"""Progress is reported every this many frames."""


@dataclass(frozen=True)
class Options:
    """Options of a conversion.

    image_size: side of the square frames in pixels. fit, grey: mode and grey of `Fit`. frame_stride: keep every
    frame_stride-th frame. min_length: leave out clips with fewer frames, counted after striding. layout: `packed`, or
    `published` for the reference layout.
    """

    image_size: int = 64
    fit: str = "crop"
    frame_stride: int = 1
    grey: bool = False
    min_length: int = 1
    layout: str = "packed"

    @classmethod
    def to_repeat(cls, preprocessing: Preprocessing) -> Options:
        """The options with which a conversion does the same to the frames."""
        known = {f.name for f in fields(cls)}
        kept = {name: value for name, value in vars(preprocessing).items() if name in known}
        return cls(image_size=preprocessing.size, **kept)


@dataclass(frozen=True)
class Task:
    """One shard to write. path: absolute path of the shard."""

    path: Path
    sources: tuple[Source, ...]
    options: Options


@dataclass(frozen=True)
class Outcome:
    """Result of a task.

    rows: clip, source and number of frames of each clip, in the shard's order. bytes: size of the shard, 0 if no clip
    was usable and no shard was written. bad, short, notes: messages about sources left out as unreadable, left out as
    too short, and kept despite a problem.
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
    """Assign the sources of a split to shards, by their order and number only."""
    size = min(CLIPS_PER_SHARD, max(1, -(-len(sources) // SMALL_SET)))
    parts = [tuple(sources[i : i + size]) for i in range(0, len(sources), size)]
    digits = max(4, len(str(len(parts))))
    return [Task(folder / f"shard_{k:0{digits}d}.hdf5", part, options) for k, part in enumerate(parts, start=1)]


def convert_shard(task: Task, progress: Callable[[int], None] = lambda frames: None) -> Outcome:
    """Read the sources and write the shard atomically. progress: called with the number of new frames.

    Raises UserError, naming the shard, if it cannot be written. An unreadable source is reported in the outcome.
    """
    kept: list[tuple[Source, int]] = []
    bad: list[str] = []
    short: list[str] = []
    notes: list[str] = []
    reader = SourceReader(task.options, notes.append)
    with _spool(task.path) as (file, path):
        for source in task.sources:
            begin, told = file.tell(), len(notes)
            try:
                length = _copy(reader.frames(source), task, file, progress)
            except SourceError as error:
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


class SourceError(UserError):
    """A source is unreadable."""


class SourceReader:
    """Reads sources frame by frame, at the size of the output; keeps source shards open between their clips."""

    def __init__(self, options: Options, note: Callable[[str], None]) -> None:
        self.stride, self.note = options.frame_stride, note
        self.fit = Fit(options.image_size, options.fit, options.grey)
        self._shards: dict[Path, Shards] = {}

    def frames(self, source: Source) -> Iterator[Frames]:
        """Every stride-th frame, uint8 [size, size, 3]. Raises SourceError if the source is unreadable."""
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
            raise SourceError(str(error)) from None

    def _stored(self, source: Source) -> Iterator[Frames]:
        if source.path not in self._shards:
            self._shards[source.path] = open_shards(source.path)
        shards = self._shards[source.path]
        for t in range(0, int(shards.lengths[source.clip]), self.stride):
            yield self.fit.array(shards.frames(source.clip, [t])[0])


def _copy(frames: Iterator[Frames], task: Task, file: BinaryIO, progress: Callable[[int], None]) -> int:
    """Append frames to the spool file; return their number."""
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
    # HDF5 does not recover from a full disk and may even crash, so check the free space first.
    if room.f_bavail * room.f_frsize < needed:
        raise UserError(
            f"{task.path}: cannot be written (No space left on device); free some space and run the same command again"
        )
    if task.options.layout == "packed":
        write_shard(task.path, clips)
    else:
        write_reference(task.path, clips)


def _place(source: Source) -> str:
    return f"{source.path}: clip {source.name}" if source.kind == "shards" else str(source.path)


@contextmanager
def _spool(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file for raw frames, deleted at the end. After a killed process, the next run deletes it."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        spool = path.with_name(f".{path.name}.{os.getpid()}.spool.tmp")
        file = spool.open("wb")
    try:
        yield file, spool
    finally:
        spool.unlink(missing_ok=True)
        # Closing flushes the buffer, which fails on a full disk; its content is no longer needed.
        with suppress(OSError):
            file.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Convert write errors of the operating system and HDF5 to UserError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"{path}: cannot be written ({reason}); fix this and run the same command again to resume"
        ) from None
