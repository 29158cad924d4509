"""Training batches: reads the windows that the sampler selects from the shards, as tensors."""

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

    data: [b, window, ...], uint8 frames or float32 latents. clips: [b], clip index of each window. total: number of
    windows in the global batch. offset: this part is [offset : offset + b] of the global batch, to slice noise that is
    drawn for all of it. step: global step.
    """

    data: Tensor
    clips: Tensor
    total: int
    offset: int
    step: int

    def to(self, device: torch.device) -> TrainBatch:
        """The batch with its data on a device; the copy is asynchronous if the data is pinned."""
        return replace(self, data=self.data.to(device, non_blocking=True))


def warn_of_short_clips(shards: Shards, frames: int, stride: int = 1, *, named: int = 3) -> None:
    """Log a warning about clips too short for a window of `frames` frames, `stride` apart; names the first `named`."""
    span = (frames - 1) * stride + 1
    short = (shards.lengths < span).nonzero()[0].tolist()
    if short:
        first = ", ".join(f"{shards.names[i]} ({shards.lengths[i]})" for i in short[:named])
        more = ", ..." if len(short) > named else ""
        log.warning(
            "%s: %d of %d clips are left out because they have fewer than %d frames (%s%s)",
            *(shards.folder, len(short), len(shards), span, first, more),
        )


class WindowBatches:
    """The training batch of each global step.

    window: frames per window. stride: distance of the frames in a window. pin_memory: return pinned tensors (torch's
    caching allocator keeps them alive during asynchronous copies). Raises ValueError if the sampler's number of windows
    does not match the shards.
    """

    def __init__(self, shards: Shards, window: int, stride: int, sampler: Sampler, *, pin_memory: bool = False) -> None:
        self.shards, self.sampler, self.pin_memory = shards, sampler, pin_memory
        self.index = WindowIndex(shards.lengths, window, stride)
        if sampler.num_windows != len(self.index):
            raise ValueError(f"sampler: must have {len(self.index)} windows, not {sampler.num_windows}")

    def batch(self, step: int) -> TrainBatch:
        """This rank's part of the batch of a global step; steps count from 0."""
        part = self.sampler.batch(step)
        clips, starts = self.index.locate(part.windows)
        content = torch.from_numpy(self.shards.windows(clips, starts, self.index.window, self.index.stride))
        if content.is_floating_point():
            content = content.float()
        if self.pin_memory:
            content = content.pin_memory()
        return TrainBatch(content, torch.from_numpy(clips), part.total, part.offset, part.step)
