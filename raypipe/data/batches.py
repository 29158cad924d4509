"""Batches of windows as tensors: where shards and index arithmetic meet."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from raypipe.data.shards import Shards
from raypipe.data.windows import Sampler, WindowIndex

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainBatch:
    """One rank's part of the global batch of a step.

    data: [b, window, ...], uint8 frames or float32 latents; clips: [b], which clip each window is of.
    total, offset: this part is [offset : offset + b] of a global batch of `total` windows, so that noise
    drawn for all of it can be sliced.
    """

    data: Tensor
    clips: Tensor
    total: int
    offset: int
    step: int

    def to(self, device: torch.device) -> TrainBatch:
        """The same on a device; does not block if the data is pinned."""
        return replace(self, data=self.data.to(device, non_blocking=True))


def warn_of_short_clips(shards: Shards, frames: int, stride: int = 1, *, named: int = 3) -> None:
    """Log how many clips have no window of `frames` frames, `stride` apart, and the names of the first."""
    span = (frames - 1) * stride + 1
    short = (shards.lengths < span).nonzero()[0].tolist()
    if short:
        first = ", ".join(f"{shards.names[i]} ({shards.lengths[i]})" for i in short[:named])
        more = ", ..." if len(short) > named else ""
        log.warning(
            "%s: %d of %d clips are left out: shorter than %d frames (%s%s)",
            *(shards.folder, len(short), len(shards), span, first, more),
        )


class WindowBatches:
    """The batch of every global step.

    pin_memory: give pinned tensors (of torch's caching allocator, so safe to copy without blocking).
    Raises ValueError if the sampler was made for another number of windows.
    """

    def __init__(self, shards: Shards, window: int, stride: int, sampler: Sampler, *, pin_memory: bool = False) -> None:
        self.shards, self.sampler, self.pin_memory = shards, sampler, pin_memory
        self.index = WindowIndex(shards.lengths, window, stride)
        if sampler.num_windows != len(self.index):
            raise ValueError(f"sampler: must be of {len(self.index)} windows, not {sampler.num_windows}")

    def batch(self, step: int) -> TrainBatch:
        """This rank's part of the batch of a global step, from 0 on."""
        part = self.sampler.batch(step)
        clips, starts = self.index.locate(part.windows)
        content = torch.from_numpy(self.shards.windows(clips, starts, self.index.window, self.index.stride))
        if content.is_floating_point():
            content = content.float()
        if self.pin_memory:
            content = content.pin_memory()
        return TrainBatch(content, torch.from_numpy(clips), part.total, part.offset, part.step)
