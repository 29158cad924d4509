"""Convert the sources of one shard: the unit of work of a conversion.

Frames are written one by one to a temporary spool file next to the shard; the shard is then written from a memory map
of it. Memory thus holds one frame, not a whole shard, and the frames of a source that fails halfway are truncated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from raypipe.common.errors import UserError, first_line
from raypipe.data.conversion.reader import Sampling, SourceReader
from raypipe.data.conversion.source import Source
from raypipe.data.shards.reference import write_reference
from raypipe.data.shards.writer import Clip, write_shard
from raypipe.data.video.fitting import Fit, Frames

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
    `published` for the reference layout. fps, white: see `Sampling`.
    """

    image_size: int = 64
    fit: str = "crop"
    frame_stride: int = 1
    grey: bool = False
    min_length: int = 1
    layout: str = "packed"
    fps: float | None = None
    white: float | None = None

    def sampling(self) -> Sampling:
        """How the frames of a source are read."""
        fit = Fit(self.image_size, self.fit, self.grey)
        return Sampling(fit, self.frame_stride, self.fps, self.white)


@dataclass(frozen=True)
class Task:
    """One shard to write. path: absolute path of the shard."""

    path: Path
    sources: tuple[Source, ...]
    options: Options


@dataclass(frozen=True)
class Outcome:
    """Result of a task.

    rows: clip, source, number of frames, frame rate and digest of each clip, in the shard's order. bytes: size of the
    shard, 0 if no clip was usable and no shard was written. bad, short, notes: messages about sources left out as
    unreadable, left out as too short, and kept despite a problem.
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
    kept: list[tuple[Source, int, dict[str, Any]]] = []
    bad: list[str] = []
    short: list[str] = []
    notes: list[str] = []
    reader = SourceReader(task.options.sampling(), notes.append)
    with _spool(task.path) as (file, path):
        for source in task.sources:
            begin, told = file.tell(), len(notes)
            try:
                length, digest = _copy(_read(reader, source), task, file, progress)
            except _SourceError as error:
                bad.append(str(error))
                length = 0
            else:
                if length < task.options.min_length:
                    short.append(f"{source.place}: {length} frames")
                    length = 0
            if length:
                kept.append((source, length, {"digest": digest, "fps": reader.rate}))
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
            rows = [
                {"clip": clip.name, "source": clip.source, "frames": len(clip.frames), **more}
                for clip, (_, _, more) in zip(clips, kept, strict=True)
            ]
            return Outcome(tuple(rows), task.path.stat().st_size, tuple(bad), tuple(short), tuple(notes))


class _SourceError(UserError):
    """A source is unreadable."""


def _read(reader: SourceReader, source: Source) -> Iterator[Frames]:
    try:
        yield from reader.frames(source)
    except UserError as error:
        raise _SourceError(str(error)) from None


def _copy(frames: Iterator[Frames], task: Task, file: BinaryIO, progress: Callable[[int], None]) -> tuple[int, str]:
    """Append frames to the spool file; return their number, and a digest by which equal clips are found."""
    count = told = 0
    digest = hashlib.sha256()
    for frame in frames:
        with _writing(task.path):
            file.write(frame.data)
        # Every fourth row is enough to tell clips apart, and takes a quarter of the time.
        digest.update(frame[::4].tobytes())
        count += 1
        if count - told == REPORT_FRAMES:
            progress(count - told)
            told = count
    progress(count - told)
    return count, digest.hexdigest()[:32]


def _clips(frames: Frames, kept: Sequence[tuple[Source, int, dict[str, Any]]]) -> list[Clip]:
    ends = np.cumsum([length for _, length, _ in kept]).tolist()
    return [
        Clip(source.name, frames[end - length : end], source.origin)
        for (source, length, _), end in zip(kept, ends, strict=True)
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
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(
            f"{path}: cannot be written ({reason}); fix this and run the same command again to resume"
        ) from None
