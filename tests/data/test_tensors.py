"""Frames as tensors, and batches."""

import numpy as np
import pytest
import torch

from raypipe.data.batches import WindowBatches, warn_of_short_clips
from raypipe.data.frames import to_float, to_uint8
from raypipe.data.windows import Sampler, WindowIndex


def test_frames_and_tensors_invert_each_other():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    floats = to_float(levels)
    assert floats.shape == (2, 3, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), levels)
    assert to_uint8(torch.full((3, 1, 1), 1.7)).flatten().tolist() == [255] * 3
    with pytest.raises(ValueError, match="must be uint8"):
        to_float(floats)
    with pytest.raises(ValueError, match="must be floating point"):
        to_uint8(levels)


def test_batches_are_the_windows_of_the_sampler(shards):
    index = WindowIndex(shards.lengths, 3, 2)
    sampler = Sampler(len(index), 4, seed=5)
    batches = WindowBatches(shards, 3, 2, sampler)
    for step in range(2 * sampler.steps_per_epoch):
        part = sampler.batch(step)
        clips, starts = index.locate(part.windows)
        wanted = np.stack([shards.clip(c)[s : s + 5 : 2] for c, s in zip(clips, starts, strict=True)])
        batch = batches.batch(step)
        assert torch.equal(batch.data, torch.from_numpy(wanted))
        assert batch.clips.tolist() == clips.tolist()
        assert (batch.total, batch.offset, batch.step) == (part.total, part.offset, step)
    with pytest.raises(ValueError, match="sampler: must have"):
        WindowBatches(shards, 3, 1, sampler)


def test_clips_that_are_too_short_are_named(shards, caplog):
    lengths = shards.lengths.tolist()
    warn_of_short_clips(shards, 1)
    assert not caplog.messages
    frames = min(lengths) + 1
    warn_of_short_clips(shards, frames, named=1)
    short = [i for i, length in enumerate(lengths) if length < frames]
    (message,) = caplog.messages
    assert f"{len(short)} of {len(shards)} clips are left out because they have fewer than {frames} frames" in message
    assert f"({shards.names[short[0]]} ({lengths[short[0]]})" in message
    assert len(short) == 1 or message.endswith(", ...)")
