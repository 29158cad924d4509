"""Select the windows of each training batch; index arithmetic only, without file access.

A *window* is `window` frames of one clip, `stride` frames apart. All windows of all clips are numbered 0..N-1, clip
after clip. The numbers are divided into contiguous *lanes*, one for each element of the global batch; each step takes
one window from every lane. A rank owns neighboring lanes, so it reads a contiguous range of clips, and thus mostly its
own shards. The global batch of a step does not depend on the number of ranks or on earlier steps, so training resumes
from the step number alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raypipe.common.errors import UserError

Indices = NDArray[np.int64]


class WindowIndex:
    """All windows of some clips, numbered from 0.

    lengths: [clips], number of frames of each clip. Raises ValueError if no clip is long enough for a window.
    """

    def __init__(self, lengths: ArrayLike, window: int, stride: int = 1) -> None:
        if window < 1 or stride < 1:
            raise ValueError(f"window and stride: must be at least 1, not {window} and {stride}")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.window, self.stride = window, stride
        self.span = (window - 1) * stride + 1
        counts = np.maximum(self.lengths - self.span + 1, 0)
        self.too_short: Indices = np.flatnonzero(counts == 0)
        self._ends: Indices = np.cumsum(counts)
        self._begins: Indices = self._ends - counts
        if len(self) == 0:
            longest = int(self.lengths.max(initial=0))
            raise UserError(
                f"lengths: a window of {window} frames, {stride} apart, needs clips of {self.span} frames,"
                f" but the longest of {len(self.lengths)} clips has {longest}; take fewer frames or a smaller stride"
            )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def borders(self, shard_of: ArrayLike) -> Indices:
        """Numbers of the windows that are the first of a shard, for `Sampler`. shard_of: [clips], each clip's shard."""
        shards = np.asarray(shard_of, dtype=np.int64)
        if shards.shape != self.lengths.shape:
            raise ValueError(f"shard_of: must have {len(self.lengths)} values, one per clip, not {list(shards.shape)}")
        return np.unique(self._begins[1:][shards[1:] != shards[:-1]])

    def locate(self, windows: ArrayLike) -> tuple[Indices, Indices]:
        """Clip and first frame of each window, [b] each. windows: [b]. Raises ValueError for a number out of range."""
        numbers = np.asarray(windows, dtype=np.int64)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < len(self)):
            raise ValueError(f"windows: must be from 0 to {len(self) - 1}, not {numbers.min()} to {numbers.max()}")
        clips = np.searchsorted(self._ends, numbers, side="right")
        return clips, numbers - self._begins[clips]


@dataclass(frozen=True)
class Batch:
    """One rank's part of the global batch of a step.

    windows: [b] window numbers. total: number of windows in the global batch. offset: this part is
    [offset : offset + b] of the global batch, to slice noise that is drawn for all of it. step: global step.
    """

    windows: Indices
    total: int
    offset: int
    step: int


class Sampler:
    """Selects the windows of each step; over all ranks, each window is used exactly once per epoch.

    With N windows, global batch size B and W ranks: lane l holds the windows [l*N//B, (l+1)*N//B), shuffled in each
    epoch by a generator seeded with (seed, epoch, l). Step i of an epoch takes element i of every lane; the last step
    also takes the remaining windows (at most one per lane). Rank r owns lanes [r*B/W, (r+1)*B/W).

    borders: numbers of the windows that are the first of a shard (see `WindowIndex.borders`). In a lane with windows of
    several shards, the order of the shards is shuffled, and the windows within each shard. The lane thus reads one
    shard completely before the next, as slow storage requires.

    Raises ValueError if the batch size is not a multiple of the number of ranks, or a rank would have no window.
    """

    def __init__(
        self,
        num_windows: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        borders: ArrayLike = (),
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: must be from 0 to {world_size - 1}, not {rank}")
        if batch_size < 1 or batch_size % world_size:
            raise ValueError(f"batch_size: must be a multiple of the number of ranks ({world_size}), not {batch_size}")
        if num_windows < world_size:
            raise ValueError(f"num_windows: must be at least the number of ranks ({world_size}), not {num_windows}")
        self.num_windows, self.batch_size, self.seed = num_windows, batch_size, seed
        self.steps_per_epoch = max(1, num_windows // batch_size)
        self._shards: Indices = np.unique(np.asarray(borders, dtype=np.int64))
        self._borders: Indices = np.arange(batch_size + 1, dtype=np.int64) * num_windows // batch_size
        lanes = batch_size // world_size
        self._lanes = range(rank * lanes, (rank + 1) * lanes)
        self._epoch = -1
        self._shuffled: list[Indices] = []

    def batch(self, step: int) -> Batch:
        """This rank's windows at a global step; steps count from 0."""
        if step < 0:
            raise ValueError(f"step: must be at least 0, not {step}")
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffled = [self._lane(epoch, lane) for lane in self._lanes]
            self._epoch = epoch
        if i < self.steps_per_epoch - 1:
            windows = np.array([lane[i] for lane in self._shuffled], dtype=np.int64)
            return Batch(windows, self.batch_size, self._lanes.start, step)
        # The lanes before this rank's hold `borders[start]` windows, of which i per lane are already used.
        windows = np.concatenate([lane[i:] for lane in self._shuffled])
        offset = int(self._borders[self._lanes.start]) - i * self._lanes.start
        return Batch(windows, self.num_windows - i * self.batch_size, offset, step)

    def _lane(self, epoch: int, lane: int) -> Indices:
        begin, end = self._borders[lane], self._borders[lane + 1]
        inside = self._shards[(self._shards > begin) & (self._shards < end)]
        blocks = np.split(np.arange(begin, end, dtype=np.int64), inside - begin)
        rng = np.random.default_rng([self.seed, epoch, lane])
        if len(blocks) > 1:
            blocks = [blocks[k] for k in rng.permutation(len(blocks))]
        for block in blocks:
            rng.shuffle(block)
        return np.concatenate(blocks)
