"""Write packed shards. Every file is written atomically, the manifest last.

A shard is an HDF5 file, `shard_0001.hdf5`, with n clips of N frames in total:

    frames         [N, ...]     the frames of all clips in order, contiguous and uncompressed
    start, length  int64 [n]    first frame and number of frames of each clip
    name, source   utf-8 [n]    name of each clip, and the file it was made from
    crc32          uint32 [n]   zlib.crc32 of each clip's bytes

Its attributes are `format` = "raypipe-1" and `key`, which identifies what produced the content (empty for plain
videos). The user block of the file holds a checksum of all bytes except the frames (see `integrity`).
`index.parquet` next to the shards is the manifest (see `index`); it marks the folder as complete.
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
from numpy.typing import NDArray

from raypipe.common.errors import UserError, first_line
from raypipe.common.files import atomic_path
from raypipe.data.shards.index import INDEX as INDEX
from raypipe.data.shards.index import Index, index_to_bytes
from raypipe.data.shards.integrity import USER_BLOCK, Seal, check_shard, is_sealed, seal_shard

FORMAT = "raypipe-1"
PATTERN = "shard_*.hdf5"


@dataclass(frozen=True)
class Clip:
    """One clip to write. frames: [T, ...], of any fixed-size dtype."""

    name: str
    frames: NDArray[Any]
    source: str = ""


def write_shard(path: Path, clips: Sequence[Clip], key: str = "") -> None:
    """Write one shard atomically; equal clips give equal bytes.

    Raises ValueError, naming the clip, if a clip has no name or no frames, or if the clips differ in dtype or frame
    shape.
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
            raise UserError(
                f"{path}: clip {clip.name}: has {dtype} frames of {list(shape[1:])},"
                f" but the first clip has {first.dtype} frames of {list(first.shape[1:])}"
            )
    lengths = np.array([len(clip.frames) for clip in clips], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    crcs = np.zeros(len(clips), dtype=np.uint32)
    with atomic_path(path) as temporary:
        # Creation times and a heap of variable-length strings would make the bytes differ between runs.
        with h5py.File(temporary, "w", libver=("earliest", "v110"), userblock_size=USER_BLOCK) as file:
            file.attrs["format"] = FORMAT
            file.attrs["key"] = key
            frames = file.create_dataset(
                "frames", (int(lengths.sum()), *first.shape[1:]), first.dtype, track_times=False, fill_time="never"
            )
            for i, clip in enumerate(clips):
                content = np.ascontiguousarray(clip.frames)
                frames[starts[i] : starts[i] + lengths[i]] = content
                crcs[i] = zlib.crc32(content.data)
            write_columns(file, clips, starts, lengths, crcs)
            begin, size = frames.id.get_offset(), frames.nbytes
        seal_shard(temporary, begin, begin + size)


def write_columns(
    file: h5py.File,
    clips: Sequence[Clip],
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    crcs: NDArray[np.uint32],
) -> None:
    """Write all datasets of a shard except the frames."""
    for name, column in (("start", starts), ("length", lengths), ("crc32", crcs)):
        file.create_dataset(name, data=column, track_times=False)
    for name, texts in (("name", [c.name for c in clips]), ("source", [c.source for c in clips])):
        encoded = [text.encode() for text in texts]
        dtype = h5py.string_dtype("utf-8", max(1, *map(len, encoded)))
        file.create_dataset(name, data=np.array(encoded, dtype=dtype), dtype=dtype, track_times=False)


@dataclass(frozen=True)
class ShardHead:
    """The metadata of a shard. rows: one dict per clip, with the columns of the manifest."""

    rows: list[dict[str, Any]]
    key: str
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    seal: Seal


def shard_head(path: Path) -> ShardHead:
    """Read and check the metadata of a packed shard. Raises UserError if the file is damaged or no packed shard."""
    try:
        with path.open("rb") as raw:
            seal = check_shard(raw.fileno())
        with h5py.File(path, "r") as file:
            shape, dtype = file["frames"].shape, file["frames"].dtype
            key = str(file.attrs["key"])
            columns = {name: file[name][:] for name in ("start", "length", "crc32", "name", "source")}
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a packed shard, or damaged ({first_line(error)}); create it again") from None
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
    return ShardHead(rows, key, shape[1:], dtype, seal)


def shard_rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """The rows of the manifest for one packed shard, and its key. Raises UserError as `shard_head`."""
    head = shard_head(path)
    return head.rows, head.key


def write_index(folder: Path) -> None:
    """Write the manifest of all shards in `folder`, which marks the folder as complete.

    Raises UserError, naming the file, if the shards differ in key, frame shape or dtype, or if two clips have the same
    name.
    """
    heads = {path.name: shard_head(path) for path in sorted(folder.glob(PATTERN))}
    if not heads:
        raise UserError(f"{folder}: contains no shards to list in {INDEX}")
    first_name, first = next(iter(heads.items()))
    seen: dict[str, str] = {}
    for name, head in heads.items():
        kinds = [(h.key, h.dtype.name, list(h.frame_shape)) for h in (first, head)]
        if kinds[0] != kinds[1]:
            raise UserError(
                f"{folder / name}: key, dtype and frame shape are {kinds[1]}, but {kinds[0]} in {first_name}"
            )
        for row in head.rows:
            if seen.setdefault(row["clip"], name) != name:
                raise UserError(f"{folder / name}: clip {row['clip']} is also in {seen[row['clip']]}")
    rows = [row for head in heads.values() for row in head.rows]
    index = Index(
        names=[row["clip"] for row in rows],
        sources=[row["source"] for row in rows],
        lengths=np.array([row["frames"] for row in rows], dtype=np.int64),
        shards=[row["shard"] for row in rows],
        offsets=np.array([row["offset"] for row in rows], dtype=np.int64),
        crcs=np.array([row["crc32"] for row in rows], dtype=np.uint32),
        seals={name: head.seal for name, head in heads.items()},
        frame_shape=first.frame_shape,
        dtype=first.dtype,
        key=first.key,
    )
    with atomic_path(folder / INDEX) as temporary:
        temporary.write_bytes(index_to_bytes(index))


class ShardWriter:
    """Context manager that packs clips into the shards of one folder.

        with ShardWriter(root / "train") as writer:
            writer.add("walking", frames)

    A shard is written when it has `clips_per_shard` clips or `shard_bytes` bytes. If an exception leaves the block, the
    new shards are deleted. Shards left by a killed run are replaced. Raises UserError if the folder is already
    complete or contains shards of another layout, and at the end if no clip was added.
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
            raise UserError(f"{self.folder}: already contains a finished dataset; delete it or choose another folder")
        leftovers = sorted(self.folder.glob(PATTERN))
        for path in leftovers:
            if not _is_packed(path):
                raise UserError(f"{path}: not written by raypipe and thus not replaced; choose another folder")
        for path in [*leftovers, *self.folder.glob(f".{PATTERN}.*.tmp")]:
            path.unlink()
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def add(self, name: str, frames: NDArray[Any], source: str = "") -> None:
        """Append a clip, frames [T, ...]. Raises UserError if the name was already used."""
        if name in self._names:
            raise UserError(f"{self.folder}: two clips are named {name!r}; give each clip a different name")
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
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            for number in range(1, self._shards + 1):
                self._path(number).unlink(missing_ok=True)
            return
        if self._pending:
            self._flush()
        if self._shards == 0:
            raise UserError(f"{self.folder}: no clip was added")
        write_index(self.folder)


def _is_packed(path: Path) -> bool:
    try:
        return is_sealed(path)
    except OSError:
        return False
