"""Read packed shards (format: see `writer`) by positional reads into the result array.

Memory mapping is not used: mapped pages would count as memory of the process, and a file truncated during reading, or
an I/O error, would kill the process with SIGBUS instead of raising an error. Positional reads are as fast.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.common.errors import UserError
from raypipe.data.shards.index import INDEX, index_from_bytes
from raypipe.data.shards.integrity import check_shard, crc32_at, read_at
from raypipe.data.shards.reader import Array, Shards
from raypipe.data.shards.storage import File, Folder


class OpenFile:
    """A file descriptor that is closed when the last reference to this object is gone."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class PackedShards(Shards):
    """Shards in the packed layout.

    Opening reads only the manifest. Each process checks a shard's metadata when it opens the shard, and a clip's
    checksum when it first reads the clip; content that does not match the manifest raises UserError.
    """

    def __init__(self, folder: Folder, listing: dict[str, File]) -> None:
        super().__init__()
        if INDEX not in listing:
            raise UserError(f"{folder}: incomplete, {INDEX} is missing; run the command that wrote it again")
        where = listing[INDEX]
        try:
            with where.staged() as path:
                index = index_from_bytes(path.read_bytes())
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror or error})") from None
        except ValueError as error:
            if str(where) in str(error):
                raise
            raise UserError(
                f"{where}: not a manifest of clips, or damaged ({error}); create the folder again"
            ) from None
        self.folder, self.names, self.sources, self.lengths = folder, index.names, index.sources, index.lengths
        self.frame_shape, self.dtype, self.key = index.frame_shape, index.dtype, index.key
        self.shard_names = list(index.seals)
        for name in self.shard_names:
            if name not in listing:
                raise UserError(f"{folder}/{name}: missing, but {INDEX} lists it; create the folder again")
        self.files = [listing[name] for name in self.shard_names]
        numbers = {name: number for number, name in enumerate(self.shard_names)}
        self.shard_of = np.array([numbers[name] for name in index.shards], dtype=np.int64)
        self._seals = list(index.seals.values())
        self._crcs = index.crcs
        self._frame_bytes = int(np.prod(self.frame_shape)) * self.dtype.itemsize
        begins = np.array([seal.begin for seal in self._seals], dtype=np.int64)
        self._begins = begins[self.shard_of] + index.offsets * self._frame_bytes
        self._verified = np.zeros(len(self), dtype=bool)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_verified": np.zeros(len(self), dtype=bool)}

    def _windows(self, clips: NDArray[np.int64], starts: NDArray[np.int64], window: int, stride: int) -> Array:
        span = (window - 1) * stride + 1
        result = np.empty((len(clips), window, *self.frame_shape), self.dtype)
        target = result if stride == 1 else np.empty((len(clips), span, *self.frame_shape), self.dtype)
        buffer, size = target.reshape(-1).view(np.uint8).data, span * self._frame_bytes
        offsets = (self._begins[clips] + starts * self._frame_bytes).tolist()
        shards = self.shard_of[clips].tolist()
        self._verify(clips)
        files = {shard: self._file(shard, clip) for shard, clip in zip(shards, clips.tolist(), strict=True)}
        for k, (shard, offset) in enumerate(zip(shards, offsets, strict=True)):
            part = buffer[k * size : (k + 1) * size]
            try:
                whole = os.preadv(files[shard].number, [part], offset) == size
            except OSError:
                whole = False
            if not whole:  # retry with a loop over partial reads and with error messages
                self._fill(files[shard], part, offset, int(clips[k]))
        if stride > 1:
            result[:] = target[:, ::stride]
        return result

    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array:
        self._verify(np.array([i]))
        result = np.empty((len(numbers), *self.frame_shape), self.dtype)
        buffer = result.reshape(-1).view(np.uint8).data
        file, begin, size = self._file(int(self.shard_of[i]), i), int(self._begins[i]), self._frame_bytes
        # Read each run of consecutive frames at once.
        cuts = [0, *(np.flatnonzero(np.diff(numbers) != 1) + 1).tolist(), len(numbers)]
        for low, high in pairwise(cuts):
            if low < high:
                self._fill(file, buffer[low * size : high * size], begin + int(numbers[low]) * size, i)
        return result

    def _fill(self, file: OpenFile, buffer: memoryview, offset: int, clip: int) -> None:
        try:
            read_at(file.number, buffer, offset)
        except ValueError as error:
            raise self._damaged(clip, error) from None

    def _verify(self, clips: NDArray[np.int64]) -> None:
        """Compare the checksum of each clip that this process has not read before."""
        if self._verified[clips].all():
            return
        for i in np.unique(clips[~self._verified[clips]]).tolist():
            file = self._file(int(self.shard_of[i]), i)
            begin = int(self._begins[i])
            try:
                crc = crc32_at(file.number, begin, begin + int(self.lengths[i]) * self._frame_bytes)
            except ValueError as error:
                raise self._damaged(i, error) from None
            if crc != self._crcs[i]:
                raise UserError(
                    f"{self.path(i)}: clip {self.names[i]} is damaged (its checksum does not match);"
                    " create the shard again"
                )
            self._verified[i] = True

    def _open(self, shard: int, clip: int) -> OpenFile:
        try:
            with self.files[shard].staged() as path:
                file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except FileNotFoundError:
            raise UserError(
                f"{self.path(clip)}: clip {self.names[clip]}: the shard no longer exists; create it again"
            ) from None
        except OSError as error:
            raise self._damaged(clip, f"cannot be read: {error.strerror or error}") from None
        try:
            seal = check_shard(file.number)
        except ValueError as error:
            raise self._damaged(clip, error) from None
        if seal != self._seals[shard]:
            raise self._damaged(clip, f"does not match {INDEX}")
        return file

    def _checksums(self) -> list[int]:
        checksums: list[int] = self._crcs.tolist()
        return checksums
