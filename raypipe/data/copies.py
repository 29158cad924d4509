"""Clips and copies of them, flipped or played backwards, as one set of shards, for the latent cache to encode."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.data.shards import Shards
from raypipe.data.shards.reader import Array


class Copies(Shards):
    """The clips of `base`, frames [H, W, 3], each followed by its copies in the same shard; nothing is written.

    flip: a copy mirrored left to right. reverse: a copy played backwards. With both, there is also a copy that is both.
    """

    def __init__(self, base: Shards, *, flip: bool, reverse: bool) -> None:
        super().__init__()
        self._base = base
        kinds = [(f, r) for r in (False, True)[: 1 + reverse] for f in (False, True)[: 1 + flip]]
        self._flipped = np.array([f for f, _ in kinds] * len(base))
        self._reversed = np.array([r for _, r in kinds] * len(base))
        self._clip = np.arange(len(base)).repeat(len(kinds))
        marks = ["+flipped" * f + "+reversed" * r for f, r in kinds]
        self.names = [name + mark for name in base.names for mark in marks]
        self.sources = [base.sources[i] for i in self._clip]
        self.lengths, self.shard_of = base.lengths[self._clip], base.shard_of[self._clip]
        self.folder, self.shard_names, self.files = base.folder, base.shard_names, base.files
        self.frame_shape, self.dtype, self.key = base.frame_shape, base.dtype, base.key

    def _windows(self, clips: NDArray[np.int64], starts: NDArray[np.int64], window: int, stride: int) -> Array:
        flipped, backwards = self._flipped[clips], self._reversed[clips]
        span = (window - 1) * stride + 1
        begins = np.where(backwards, self.lengths[clips] - span - starts, starts)
        result = self._base.windows(self._clip[clips], begins, window, stride)
        result[backwards] = result[backwards, ::-1]
        result[flipped] = result[flipped, :, :, ::-1]
        return result

    def _read(self, i: int, numbers: NDArray[np.int64]) -> Array:
        if self._reversed[i]:
            numbers = self.lengths[i] - 1 - numbers
        frames = self._base.frames(int(self._clip[i]), numbers)
        return np.ascontiguousarray(frames[:, :, ::-1]) if self._flipped[i] else frames

    def _open(self, shard: int, clip: int) -> Any:
        return self._base._open(shard, int(self._clip[clip]))

    def _checksums(self) -> list[int]:
        return self._base._checksums()
