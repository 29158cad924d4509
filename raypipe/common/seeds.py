"""Random seeds and generators that depend on the training step."""

import numpy as np
import torch


def step_generator(seed: int, step: int, stream: int) -> torch.Generator:
    """A CPU generator for one training step. stream: distinguishes independent uses of randomness in a step."""
    return torch.Generator().manual_seed(step_seed(seed, step, stream))


def step_seed(seed: int, step: int, stream: int) -> int:
    """A 64-bit seed derived from all three arguments."""
    high, low = np.random.SeedSequence([seed, step, stream]).generate_state(2, np.uint32)
    return int(high) << 32 | int(low)
