"""Reading clips from shards, in either layout: `open_shards(folder)`.

Packed shards (see `packing`) are memory-mapped, so that a window costs a copy of its bytes and nothing
else. The published layout, one compressed dataset per frame, is read through h5py.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from raypipe.data.packing import FORMAT, INDEX, PATTERN, SCHEMA, ShardWriter, shard_rows

__all__ = ["PackedShards", "PublishedShards", "ShardWriter", "Shards", "open_shards"]

Array = NDArray[Any]


class Shards(ABC):
    """The clips of one split. Files are opened on first use in each process; an instance pickles and forks safely.

    folder: where they lie. names, sources: [n] str. lengths: [n] int64, frames of each clip.
    shard_of: [n] int64, which of `shard_names` holds each clip. frame_shape, dtype: of one frame.
    key: what the content was made by, empty for plain videos.
    """

    folder: Path
    names: list[str]
    sources: list[str]
    lengths: NDArray[np.int64]
    shard_names: list[str]
    shard_of: NDArray[np.int64]
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    key: str = ""

    def __init__(self) -> None:
        self._files: dict[int, Any] = {}
        self._owner = os.getpid()

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def clip(self, i: int) -> Array:
        """All frames of clip i, [T, ...]. Raises ValueError, naming file and clip, for damaged content."""
        return self.frames(i, slice(None))

    def frames(self, i: int, which: slice | Sequence[int] | NDArray[np.int64]) -> Array:
        """Some frames of clip i, [t, ...], reading only those. Raises IndexError as a list does."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.folder}: no clip {i} among {len(self)}")
        i %= len(self)
        numbers = np.arange(self.lengths[i])[which]
        return self._read(i, numbers)

    def windows(self, clips: ArrayLike, starts: ArrayLike, window: int, stride: int = 1) -> Array:
        """Windows that begin at frame `starts[k]` of clip `clips[k]`: [b, window, ...]."""
        offsets = np.arange(window) * stride
        pairs = zip(np.asarray(clips).tolist(), np.asarray(starts).tolist(), strict=True)
        return np.stack([self.frames(clip, start + offsets) for clip, start in pairs])

    def path(self, i: int) -> Path:
        """The file that holds clip i."""
        return self.folder / self.shard_names[int(self.shard_of[i])]

    def content_hash(self) -> str:
        """Identifies the content: names, lengths and checksums (file sizes, in the published layout)."""
        content = [self.names, self.lengths.tolist(), list(self.frame_shape), self.dtype.name, self._checksums()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def _file(self, shard: int) -> Any:
        """What `_open` gave for this shard, in this process."""
        if self._owner != os.getpid():
            self._files, self._owner = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = self._open(shard)
        return self._files[shard]

    @abstractmethod
    def _open(self, shard: int) -> Any: ...

    @abstractmethod
    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array: ...

    @abstractmethod
    def _checksums(self) -> list[int]: ...


class PackedShards(Shards):
    """Shards in the packed layout. A clip's checksum is verified when a process first reads it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        index = folder / INDEX
        if not index.is_file():
            raise ValueError(f"{folder}: unfinished, {INDEX} is missing; run again what was making it")
        try:
            table = pq.read_table(index, schema=SCHEMA).to_pydict()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{index}: not a manifest of clips ({str(error).splitlines()[0]})") from None
        self.folder, self.names, self.sources = folder, table["clip"], table["source"]
        self.lengths = np.array(table["frames"], dtype=np.int64)
        self.shard_names = sorted(set(table["shard"]))
        self.shard_of = np.searchsorted(self.shard_names, table["shard"])
        self._starts = np.array(table["offset"], dtype=np.int64)
        self._crcs: list[int] = table["crc32"]
        if not self.names:
            raise ValueError(f"{index}: lists no clip; make the folder anew")
        for name in self.shard_names:
            if not (folder / name).is_file():
                raise ValueError(f"{folder / name}: missing, though {INDEX} lists it; make the folder anew")
        self._verified = np.zeros(len(self), dtype=bool)
        frames = self._map(self.folder / self.shard_names[0])
        self.frame_shape, self.dtype = frames.shape[1:], frames.dtype
        self.key = shard_rows(self.folder / self.shard_names[0])[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_verified": np.zeros(len(self), dtype=bool)}

    def windows(self, clips: ArrayLike, starts: ArrayLike, window: int, stride: int = 1) -> Array:
        clips, starts = np.asarray(clips, dtype=np.int64), np.asarray(starts, dtype=np.int64)
        span = (window - 1) * stride + 1
        if starts.min(initial=0) < 0 or (starts + span > self.lengths[clips]).any():
            raise IndexError(f"{self.folder}: a window of {span} frames reaches beyond its clip")
        self._verify(clips)
        result = np.empty((len(clips), window, *self.frame_shape), self.dtype)
        # One slice a window: plain copies of stretches of the file are twice as fast as gathering frames by index.
        rows = (self._starts[clips] + starts).tolist()
        shards = self.shard_of[clips].tolist()
        files = {shard: self._file(shard) for shard in set(shards)}
        for k, (shard, row) in enumerate(zip(shards, rows, strict=True)):
            result[k] = files[shard][row : row + span : stride]
        return result

    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array:
        self._verify(np.array([i]))
        frames: Array = self._file(int(self.shard_of[i]))[self._starts[i] + numbers]
        return frames

    def _verify(self, clips: NDArray[np.int64]) -> None:
        """The first reading of a clip by this process: compare its checksum."""
        if self._verified[clips].all():
            return
        for i in np.unique(clips[~self._verified[clips]]).tolist():
            content = self._file(int(self.shard_of[i]))[self._starts[i] : self._starts[i] + self.lengths[i]]
            if len(content) != self.lengths[i] or zlib.crc32(content) != self._crcs[i]:
                raise ValueError(
                    f"{self.path(i)}: clip {self.names[i]} is damaged (its checksum differs); make the shard anew"
                )
            self._verified[i] = True

    def _open(self, shard: int) -> Array:
        path = self.folder / self.shard_names[shard]
        frames = self._map(path)
        if frames.shape[1:] != self.frame_shape or frames.dtype != self.dtype:
            first = self.folder / self.shard_names[0]
            raise ValueError(
                f"{path}: clip {self._first_clip(shard)}: frames are {frames.dtype} {list(frames.shape[1:])}, and"
                f" {self.dtype} {list(self.frame_shape)} in {first.name}; make the folder anew"
            )
        return frames

    def _map(self, path: Path) -> Array:
        """The frames of a shard as a read-only view of the file."""
        try:
            with h5py.File(path, "r") as file:
                dataset = file["frames"]
                offset, shape, dtype = dataset.id.get_offset(), dataset.shape, dataset.dtype
                if offset is None:
                    raise ValueError("`frames` is not contiguous")
            return np.asarray(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape))
        except (OSError, KeyError, RuntimeError, ValueError, AttributeError, TypeError) as error:
            clip = self._first_clip(self.shard_names.index(path.name))
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: clip {clip} and after: damaged shard ({reason}); make it anew") from None

    def _first_clip(self, shard: int) -> str:
        return self.names[int(np.flatnonzero(self.shard_of == shard)[0])]

    def _checksums(self) -> list[int]:
        return self._crcs


class PublishedShards(Shards):
    """Shards in the published layout: datasets `<clip>/<frame>`, uint8 [H, W, 3], and `len/<clip>`."""

    def __init__(self, folder: Path, paths: Sequence[Path]) -> None:
        super().__init__()
        self.folder, self.shard_names = folder, [path.name for path in paths]
        self.names, self._groups, lengths, shard_of = [], [], [], []
        for shard, path in enumerate(paths):
            try:
                with h5py.File(path, "r") as file:
                    for group in sorted(file["len"], key=int):
                        self.names.append(f"{path.stem}/{group}")
                        self._groups.append(group)
                        lengths.append(int(file["len"][group][()]))
                        shard_of.append(shard)
            except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"{path}: damaged, or in neither known layout ({reason})") from None
        if not self.names:
            raise ValueError(f"{folder}: its shards hold no clip")
        self.sources = [""] * len(self.names)
        self.lengths = np.array(lengths, dtype=np.int64)
        self.shard_of = np.array(shard_of, dtype=np.int64)
        self.frame_shape, self.dtype = (), np.dtype(np.uint8)
        longest = int(self.lengths.argmax())
        self.frame_shape = self._frame(longest, 0).shape

    def _open(self, shard: int) -> h5py.File:
        path = self.folder / self.shard_names[shard]
        try:
            return h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path}: damaged shard ({str(error).splitlines()[0]})") from None

    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array:
        frames = np.empty((len(numbers), *self.frame_shape), self.dtype)
        for k, number in enumerate(numbers.tolist()):
            frame = self._frame(i, number)
            if frame.shape != self.frame_shape or frame.dtype != self.dtype:
                raise ValueError(
                    f"{self.path(i)}: clip {self.names[i]}: frame {number} is {frame.dtype} {list(frame.shape)},"
                    f" not {self.dtype} {list(self.frame_shape)}"
                )
            frames[k] = frame
        return frames

    def _frame(self, i: int, number: int) -> Array:
        try:
            frame: Array = self._file(int(self.shard_of[i]))[self._groups[i]][str(number)][()]
            return frame
        except (OSError, KeyError, RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{self.path(i)}: clip {self.names[i]}: frame {number} is damaged ({reason})") from None

    def _checksums(self) -> list[int]:
        return [(self.folder / name).stat().st_size for name in self.shard_names]


def open_shards(folder: str | Path) -> Shards:
    """Open a folder of shards, packed or published: the layout is seen in the first file.

    Raises ValueError if there are none, or if they are unfinished or damaged.
    """
    folder = Path(folder)
    paths = sorted(folder.glob(PATTERN))
    if not paths and not (folder / INDEX).is_file():
        root = folder.parent
        raise ValueError(
            f"{folder}: no shards here; make them with python -m raypipe.convert_to_h5"
            f" --data_dir VIDEOS --out_dir {root}"
        )
    return PackedShards(folder) if (folder / INDEX).is_file() or _packed(paths[0]) else PublishedShards(folder, paths)


def _packed(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("format") == FORMAT)
    except OSError as error:
        raise ValueError(f"{path}: damaged shard ({str(error).splitlines()[0]}); make it anew") from None
