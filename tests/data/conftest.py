"""A small folder of shards, for those who do not care what is in it."""

import numpy as np
import pytest

from raypipe.data.shards import ShardWriter, open_shards


@pytest.fixture
def shards(tmp_path):
    """Eight clips of 5 to 11 frames, 8x8 pixels, three clips a shard."""
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "train", clips_per_shard=3) as writer:
        for i in range(8):
            writer.add(f"clip{i}", rng.integers(0, 256, (int(rng.integers(5, 12)), 8, 8, 3), np.uint8))
    return open_shards(tmp_path / "train")
