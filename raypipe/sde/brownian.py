"""Brownian increments as a function of (seed, window, frame): no forecast depends on what it is batched with."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from raypipe.sde.solvers import Brownian


def brownian(
    seed: int, windows: Sequence[int], members: int, frame: int, steps: int, readouts: int, shape: Sequence[int]
) -> Brownian:
    """The noise that drives one predicted frame of `members` forecasts of each window.

    Returns increments [steps, windows * members, *shape] and bridge [readouts, windows * members, *shape].
    Members come first in each window's stream, so that asking for more of them changes none.
    """
    increments = torch.empty(len(windows), members, steps, *shape)
    bridge = torch.empty(len(windows), members, readouts, *shape)
    for row, window in enumerate(windows):
        grid, between = _generator(seed, window, frame, 0), _generator(seed, window, frame, 1)
        for member in range(members):  # one fill each: the last values of a fill depend on its length
            increments[row, member].normal_(generator=grid)
            bridge[row, member].normal_(generator=between)
    increments *= math.sqrt(1 / steps)
    return Brownian(_time_first(increments), _time_first(bridge))


def _time_first(noise: Tensor) -> Tensor:
    return noise.flatten(0, 1).transpose(0, 1)


def _generator(*key: int) -> torch.Generator:
    state = np.random.SeedSequence([int(part) for part in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
