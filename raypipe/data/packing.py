"""Writing packed shards: every file whole, the manifest last.

A shard is one HDF5 file, `shard_0001.hdf5`, of n clips with N frames in all:

    frames  [N, ...]    the frames of all clips, one after the other, contiguous and uncompressed
    start, length  int64 [n]    where each clip lies in them
    name, source   utf-8 [n]    what each clip is called, and the file it was made from
    crc32   uint32 [n]          zlib.crc32 of each clip's bytes

with attributes `format` = "raypipe-1" and `key` (what the content was made by; empty for plain videos).
`index.parquet` beside the shards has one row a clip, and says by its presence that the folder is complete.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypipe.files import atomic_path

FORMAT = "raypipe-1"
INDEX = "index.parquet"
PATTERN = "shard_*.hdf5"
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("source", pa.string()),
        ("frames", pa.int64()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("crc32", pa.uint32()),
    ]
)


@dataclass(frozen=True)
class Clip:
    """One clip to be written. frames: [T, ...], any fixed-size dtype."""

    name: str
    frames: NDArray[Any]
    source: str = ""


def write_shard(path: Path, clips: Sequence[Clip], key: str = "") -> None:
    """Write one shard, whole or not at all; equal clips give equal bytes.

    Raises ValueError, naming the clip, unless all have frames, and all frames one shape and dtype.
    """
    if not clips:
        raise ValueError(f"{path}: a shard needs at least one clip")
    first = clips[0].frames
    for clip in clips:
        shape, dtype = clip.frames.shape, clip.frames.dtype
        if not clip.name:
            raise ValueError(f"{path}: a clip made from {clip.source!r} has no name")
        if clip.frames.ndim < 2 or shape[0] == 0:
            raise ValueError(f"{path}: clip {clip.name}: must be [T, ...] with T at least 1, not {list(shape)}")
        if shape[1:] != first.shape[1:] or dtype != first.dtype:
            raise ValueError(
                f"{path}: clip {clip.name}: has {dtype} frames of {list(shape[1:])},"
                f" and the clips before it {first.dtype} frames of {list(first.shape[1:])}"
            )
    lengths = np.array([len(clip.frames) for clip in clips], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    crcs = np.zeros(len(clips), dtype=np.uint32)
    # No times of creation and no heap of variable-length strings: both would make bytes differ from run to run.
    with atomic_path(path) as temporary, h5py.File(temporary, "w", libver=("earliest", "v110")) as file:
        file.attrs["format"] = FORMAT
        file.attrs["key"] = key
        frames = file.create_dataset(
            "frames", (int(lengths.sum()), *first.shape[1:]), first.dtype, track_times=False, fill_time="never"
        )
        for i, clip in enumerate(clips):
            content = np.ascontiguousarray(clip.frames)
            frames[starts[i] : starts[i] + lengths[i]] = content
            crcs[i] = zlib.crc32(content.data)
        for name, column in (("start", starts), ("length", lengths), ("crc32", crcs)):
            file.create_dataset(name, data=column, track_times=False)
        for name, texts in (("name", [c.name for c in clips]), ("source", [c.source for c in clips])):
            encoded = [text.encode() for text in texts]
            dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded)))
            file.create_dataset(name, data=np.array(encoded, dtype=dtype), dtype=dtype, track_times=False)


def shard_rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of the manifest for one packed shard, and its key. Raises ValueError naming a damaged file."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                raise ValueError(f"{path}: not a packed shard (format {file.attrs.get('format')!r}, not {FORMAT!r})")
            key = str(file.attrs.get("key", ""))
            columns = {name: file[name][:] for name in ("start", "length", "crc32", "name", "source")}
    except (OSError, KeyError, RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged shard ({_brief(error)}); make it anew") from None
    try:
        rows = [
            {
                "clip": name.decode(),
                "source": source.decode(),
                "frames": int(length),
                "shard": path.name,
                "offset": int(start),
                "crc32": int(crc),
            }
            for start, length, crc, name, source in zip(*columns.values(), strict=True)
        ]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: damaged shard ({_brief(error)}); make it anew") from None
    return rows, key


def write_index(folder: Path) -> None:
    """Write the manifest of all shards in `folder`, which declares it complete."""
    rows = [row for path in sorted(folder.glob(PATTERN)) for row in shard_rows(path)[0]]
    with atomic_path(folder / INDEX) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)


class ShardWriter:
    """Pack clips into shards of one folder; a context manager.

        with ShardWriter(root / "train") as writer:
            writer.add("walking", frames)

    A shard is closed at `clips_per_shard` clips or `shard_bytes` bytes. An exception removes what was
    written; shards left by a killed run are replaced. Raises ValueError for a folder that is complete, or
    that holds shards of another layout, and at the end if no clip was added.
    """

    def __init__(
        self, folder: str | Path, clips_per_shard: int = 100, shard_bytes: int = 1 << 28, key: str = ""
    ) -> None:
        if clips_per_shard < 1 or shard_bytes < 1:
            raise ValueError(f"clips_per_shard, shard_bytes: must be at least 1, not {clips_per_shard}, {shard_bytes}")
        self.folder, self.key = Path(folder), key
        self._clips_per_shard, self._shard_bytes = clips_per_shard, shard_bytes
        self._pending: list[Clip] = []
        self._names: set[str] = set()
        self._shards = 0

    def __enter__(self) -> Self:
        if (self.folder / INDEX).exists():
            raise ValueError(f"{self.folder}: holds a finished dataset already; delete it or choose another folder")
        leftovers = sorted(self.folder.glob(PATTERN))
        for path in leftovers:
            if not _is_packed(path):
                raise ValueError(f"{path}: not written by raypipe, so not replaced; choose another folder")
        for path in [*leftovers, *self.folder.glob(f".{PATTERN}.*.tmp")]:
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, name: str, frames: NDArray[Any], source: str = "") -> None:
        """Append a clip [T, ...]. Raises ValueError for a name that was used before."""
        if name in self._names:
            raise ValueError(f"{self.folder}: two clips are named {name!r}; names must differ")
        self._names.add(name)
        self._pending.append(Clip(name, frames, source))
        size = sum(clip.frames.nbytes for clip in self._pending)
        if len(self._pending) >= self._clips_per_shard or size >= self._shard_bytes:
            self._flush()

    def _flush(self) -> None:
        self._shards += 1
        write_shard(self._path(self._shards), self._pending, self.key)
        self._pending = []

    def _path(self, number: int) -> Path:
        return self.folder / f"shard_{number:04d}.hdf5"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for number in range(1, self._shards + 1):
                self._path(number).unlink(missing_ok=True)
            return
        if self._pending:
            self._flush()
        if self._shards == 0:
            raise ValueError(f"{self.folder}: no clip was added")
        write_index(self.folder)


def _is_packed(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError:
        return False


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
