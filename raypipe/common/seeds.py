"""Seeded generators of random numbers."""

import numpy as np
import torch


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """The generator of one training step; streams keep its users apart."""
    return torch.Generator().manual_seed(step_seed(seed, step, stream))


def step_seed(seed: int, step: int, stream: int) -> int:
    """64 bits that depend on all three."""
    high, low = np.random.SeedSequence([seed, step, stream]).generate_state(2, np.uint32)
    return int(high) << 32 | int(low)
