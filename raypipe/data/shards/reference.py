"""Read and write shards in the layout of the reference code.

Each frame is a dataset `<clip>/<frame>`, uint8 [H, W, 3], compressed with lzf; `len/<clip>` holds the number of frames.
Grey frames, [H, W] or [H, W, 1], are read as three equal channels. Other groups, such as labels, are not read.
The layout has no checksums, so a changed byte inside a frame may go undetected. Packed shards have checksums and are
much faster to read; `raypipe.convert_to_h5` converts a folder.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from h5py import h5d, h5g, h5s
from numpy.typing import NDArray

from raypipe.common.errors import UserError, first_line
from raypipe.common.files import atomic_path
from raypipe.data.shards.reader import Array, Shards
from raypipe.data.shards.storage import File, Folder
from raypipe.data.shards.writer import Clip

SAMPLES, SAMPLE_BYTES = 64, 1 << 14
"""`content_hash` reads SAMPLES evenly spaced pieces of SAMPLE_BYTES bytes of each file; smaller files completely."""
ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, AttributeError)
"""Exceptions that h5py raises for damaged files."""


class ReferenceShards(Shards):
    """Shards in the reference layout. Opening compares the length of every clip with the number of its frames."""

    MAX_OPEN = 32  # lower than the default, as HDF5 holds caches for each open file

    def __init__(self, folder: Folder, listing: dict[str, File]) -> None:
        super().__init__()
        self.folder, self.shard_names, self.files = folder, list(listing), list(listing.values())
        self.names = []
        self._groups: list[str] = []
        lengths: list[int] = []
        shard_of: list[int] = []
        for shard, (name, where) in enumerate(listing.items()):
            stem = name.removesuffix(".hdf5")
            found = _lengths(where, stem)
            self.names += [f"{stem}/{group}" for group in found]
            self._groups += found
            lengths += found.values()
            shard_of += [shard] * len(found)
        if not self.names:
            raise UserError(f"{folder}: its shards contain no clips")
        self.sources = [""] * len(self.names)
        self.lengths = np.array(lengths, dtype=np.int64)
        self.shard_of = np.array(shard_of, dtype=np.int64)
        self.frame_shape, self.dtype = (), np.dtype(np.uint8)
        longest = int(self.lengths.argmax())
        self.frame_shape = self._frame(longest, 0).shape

    def _open(self, shard: int, clip: int) -> h5py.File:
        try:
            with self.files[shard].staged() as path:
                return h5py.File(path, "r")
        except OSError as error:
            raise self._damaged(clip, error) from None

    def _windows(self, clips: NDArray[np.int64], starts: NDArray[np.int64], window: int, stride: int) -> Array:
        offsets = np.arange(window) * stride
        pairs = zip(clips.tolist(), starts.tolist(), strict=True)
        windows = [self._read(clip, start + offsets) for clip, start in pairs]
        return np.stack(windows) if windows else np.empty((0, window, *self.frame_shape), self.dtype)

    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array:
        frames = np.empty((len(numbers), *self.frame_shape), self.dtype)
        for k, number in enumerate(numbers.tolist()):
            frame = self._frame(i, number)
            if frame.shape != self.frame_shape or frame.dtype != self.dtype:
                raise UserError(
                    f"{self.path(i)}: clip {self.names[i]}: frame {number} is {frame.dtype} {list(frame.shape)},"
                    f" not {self.dtype} {list(self.frame_shape)}"
                )
            frames[k] = frame
        return frames

    def _frame(self, i: int, number: int) -> Array:
        file = self._file(int(self.shard_of[i]), i)
        try:
            return _in_color(np.asarray(file[self._groups[i]][str(number)][()]))
        except ERRORS as error:
            reason = first_line(error)
            raise UserError(f"{self.path(i)}: clip {self.names[i]}: frame {number} is damaged ({reason})") from None

    def _checksums(self) -> list[int]:
        """Size and checksum of sampled bytes of each file.

        Reading all bytes would take minutes for a large dataset. A changed clip changes the sizes of its compressed
        frames and shifts everything after them; a change that keeps every size may go undetected.
        """
        return [value for where in self.files for value in _sampled(where)]


def _sampled(where: File) -> tuple[int, int]:
    with where.staged() as path, path.open("rb") as file:
        size = path.stat().st_size
        if size <= SAMPLES * SAMPLE_BYTES:
            return size, zlib.crc32(file.read())
        crc = 0
        for offset in np.linspace(0, size - SAMPLE_BYTES, SAMPLES).astype(np.int64).tolist():
            file.seek(offset)
            crc = zlib.crc32(file.read(SAMPLE_BYTES), crc)
        return size, crc


def _lengths(where: File, stem: str) -> dict[str, int]:
    """Number of frames of each clip in a file, in numeric order of the clips. Raises UserError naming file and clip."""
    try:
        with where.staged() as path, h5py.File(path, "r") as file:
            groups = sorted(file["len"], key=_number)
            # Related programs add groups of labels, and an empty group `videos`; those are no clips.
            strays = set(groups) ^ {name for name in file if name in groups or name.isdecimal()}
            if strays:
                clip = min(strays)
                raise UserError(
                    f"{where}: clip {stem}/{clip}: has {'no frames' if clip in groups else 'no length in `len`'}"
                )
            lengths = {group: _length(file, group, f"{where}: clip {stem}/{group}") for group in groups}
    except ERRORS as error:
        if str(where) in str(error):
            raise
        raise UserError(f"{where}: damaged, or not in a known layout ({first_line(error)})") from None
    return lengths


def _number(name: str) -> tuple[int, str]:
    """Sort key for the names of clips, which are usually numbers."""
    return (int(name), "") if name.isdecimal() else (-1, name)


def _in_color(frame: Array) -> Array:
    """A frame with three channels: grey, [H, W] or [H, W, 1], becomes three equal ones."""
    if frame.ndim == 2:
        frame = frame[..., None]
    return np.repeat(frame, 3, axis=-1) if frame.ndim == 3 and frame.shape[-1] == 1 else frame


def _length(file: h5py.File, group: str, clip: str) -> int:
    """Number of frames of one clip. clip: its name in errors. Uses low-level h5py calls, which are faster."""
    value: Any = np.empty((), np.int64)
    try:
        h5d.open(file.id, f"len/{group}".encode()).read(h5s.ALL, h5s.ALL, value)
        there = h5g.open(file.id, group.encode()).get_num_objs()
    except ERRORS as error:
        raise UserError(f"{clip}: its length is damaged ({first_line(error)})") from None
    if value != there or value < 1:
        raise UserError(f"{clip}: its length says {value} frames, but it contains {there}; create the shard again")
    return int(value)


MANIFEST = "manifest.parquet"
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("source", pa.string()),
        ("frames", pa.int64()),
        ("shard", pa.string()),
        ("group", pa.int64()),
    ]
)


def write_reference(path: Path, clips: Sequence[Clip]) -> None:
    """Write one shard of uint8 clips [T, H, W, 3] atomically; equal clips give equal bytes."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        lengths = file.create_group("len")
        for i, clip in enumerate(clips):
            group = file.create_group(str(i))
            for t, frame in enumerate(clip.frames):
                group.create_dataset(str(t), data=frame, dtype=np.uint8, compression="lzf", track_times=False)
            lengths.create_dataset(str(i), data=len(clip.frames), track_times=False)


def write_manifest(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the names and sources of the clips, which the layout cannot store; marks the folder as complete.

    rows: one dict per clip, with the columns of `SCHEMA`.
    """
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), temporary)
