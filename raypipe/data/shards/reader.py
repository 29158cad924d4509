"""Reader interface of both shard layouts: clips, frames and windows by index."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.common.errors import UserError, first_line
from raypipe.data.shards.storage import File, Folder

Array = NDArray[Any]


class Shards(ABC):
    """The clips of one split. Files are opened on first use in each process; instances can be pickled and forked.

    folder: folder of the shards. names, sources: n strings. lengths: [n] int64, number of frames of each clip.
    shard_of: [n] int64, index into `shard_names` and `files` of the shard with each clip. frame_shape, dtype: of one
    frame. key: identifies what produced the content, empty for plain videos.
    """

    MAX_OPEN: ClassVar[int] = 128
    """Number of files kept open per process; the least recently used one is closed first."""

    folder: Folder
    names: list[str]
    sources: list[str]
    lengths: NDArray[np.int64]
    shard_names: list[str]
    shard_of: NDArray[np.int64]
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    key: str = ""
    files: list[File]

    def __init__(self) -> None:
        self._open_files: OrderedDict[int, Any] = OrderedDict()
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._hash: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_open_files", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_open_files": OrderedDict(), "_lock": threading.Lock()}

    def clip(self, i: int) -> Array:
        """All frames of clip i, [T, *frame_shape]. Raises UserError, naming file and clip, if they are damaged."""
        return self.frames(i, slice(None))

    def frames(self, i: int, which: slice | Sequence[int] | NDArray[np.int64]) -> Array:
        """Selected frames of clip i, [t, *frame_shape]; reads only these. Raises IndexError for a bad index."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.folder}: no clip {i}, there are {len(self)} clips")
        i %= len(self)
        numbers = np.arange(self.lengths[i])[which]
        return self._read(i, numbers)

    def windows(self, clips: ArrayLike, starts: ArrayLike, window: int, stride: int = 1) -> Array:
        """Windows of b clips, [b, window, *frame_shape].

        Window k begins at frame `starts[k]` of clip `clips[k]`; its frames are `stride` apart. clips, starts: [b].
        Raises IndexError if a window extends beyond its clip.
        """
        clips, starts = np.asarray(clips, dtype=np.int64), np.asarray(starts, dtype=np.int64)
        if clips.size and not 0 <= clips.min() <= clips.max() < len(self):
            raise IndexError(f"{self.folder}: clip indices must be from 0 to {len(self) - 1}")
        span = (window - 1) * stride + 1
        if starts.min(initial=0) < 0 or (starts + span > self.lengths[clips]).any():
            raise IndexError(f"{self.folder}: a window of {span} frames extends beyond its clip")
        return self._windows(clips, starts, window, stride)

    def path(self, i: int) -> str:
        """Path or URI of the shard with clip i."""
        return str(self.files[int(self.shard_of[i])])

    def content_hash(self) -> str:
        """Hash of the content: names, lengths, frame shape, dtype and checksums of the clips, 16 hex digits."""
        if self._hash is None:
            content = [self.names, self.lengths.tolist(), list(self.frame_shape), self.dtype.name, self._checksums()]
            self._hash = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return self._hash

    def _file(self, shard: int, clip: int) -> Any:
        """This process's open file of a shard; opens it if needed. clip: clip to name in errors."""
        if self._owner != os.getpid():
            # After a fork: HDF5 files share state with the parent, and a thread of it may hold the lock.
            self._open_files, self._lock, self._owner = OrderedDict(), threading.Lock(), os.getpid()
        with self._lock:
            # A file that another thread still reads from is closed only when that thread drops its reference.
            file = self._open_files.pop(shard, None)
            if file is None:
                file = self._open(shard, clip)
            self._open_files[shard] = file
            while len(self._open_files) > self.MAX_OPEN:
                self._open_files.popitem(last=False)
        return file

    def _damaged(self, i: int, reason: str | BaseException) -> UserError:
        text = first_line(reason) if isinstance(reason, BaseException) else reason
        return UserError(f"{self.path(i)}: clip {self.names[i]}: damaged shard ({text}); create it again")

    @abstractmethod
    def _open(self, shard: int, clip: int) -> Any: ...

    @abstractmethod
    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array: ...

    @abstractmethod
    def _windows(self, clips: NDArray[np.int64], starts: NDArray[np.int64], window: int, stride: int) -> Array: ...

    @abstractmethod
    def _checksums(self) -> list[int]: ...
