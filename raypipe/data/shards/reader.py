"""What both layouts of shards offer a reader: clips, frames and windows by number."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.data.shards.storage import File, Folder

Array = NDArray[Any]


class Shards(ABC):
    """The clips of one split. Files are opened on first use in each process; an instance pickles and forks safely.

    folder: where they lie. names, sources: [n] str. lengths: [n] int64, frames of each clip.
    shard_of: [n] int64, which of `shard_names` holds each clip. frame_shape, dtype: of one frame.
    key: what the content was made by, empty for plain videos.
    """

    MAX_OPEN: ClassVar[int] = 128
    """Files that an instance keeps open in a process; the one used longest ago is closed first."""

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
        self._hash: str | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_files": OrderedDict()}

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
        """Windows that begin at frame `starts[k]` of clip `clips[k]`: [b, window, ...].

        Raises IndexError for a window that reaches beyond its clip.
        """
        clips, starts = np.asarray(clips, dtype=np.int64), np.asarray(starts, dtype=np.int64)
        if clips.size and not 0 <= clips.min() <= clips.max() < len(self):
            raise IndexError(f"{self.folder}: clips must be from 0 to {len(self) - 1}")
        span = (window - 1) * stride + 1
        if starts.min(initial=0) < 0 or (starts + span > self.lengths[clips]).any():
            raise IndexError(f"{self.folder}: a window of {span} frames reaches beyond its clip")
        return self._windows(clips, starts, window, stride)

    def path(self, i: int) -> str:
        """The file or URI that holds clip i."""
        return str(self.files[int(self.shard_of[i])])

    def content_hash(self) -> str:
        """Identifies the content: names, lengths, shape and checksums of the clips."""
        if self._hash is None:
            content = [self.names, self.lengths.tolist(), list(self.frame_shape), self.dtype.name, self._checksums()]
            self._hash = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
        return self._hash

    def _file(self, shard: int, clip: int) -> Any:
        """What `_open` gave for this shard, in this process. clip: the one that is wanted, for errors."""
        if self._owner != os.getpid():
            # HDF5 files share state with the parent process.
            self._open_files, self._owner = OrderedDict(), os.getpid()
        # Taking out and putting back leaves other threads that read the same file their reference.
        file = self._open_files.pop(shard, None)
        if file is None:
            file = self._open(shard, clip)
        self._open_files[shard] = file
        while len(self._open_files) > self.MAX_OPEN:
            self._open_files.popitem(last=False)
        return file

    def _damaged(self, i: int, reason: object) -> ValueError:
        text = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        return ValueError(f"{self.path(i)}: clip {self.names[i]}: damaged shard ({text}); make it anew")

    @abstractmethod
    def _open(self, shard: int, clip: int) -> Any: ...

    @abstractmethod
    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array: ...

    @abstractmethod
    def _windows(self, clips: NDArray[np.int64], starts: NDArray[np.int64], window: int, stride: int) -> Array: ...

    @abstractmethod
    def _checksums(self) -> list[int]: ...
