"""The moving average of a network's weights, which often forecasts better than the weights themselves."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of the weights of `live`, as a module of its own, in eval mode.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), so that the random weights of the start are soon
    forgotten. It depends on the step alone: a resumed training averages as an uninterrupted one.
    Buffers, such as BatchNorm's statistics, are averages already and are copied.
    """

    def __init__(self, live: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(live).eval().requires_grad_(False)
        self._live: list[Tensor] = list(live.parameters())
        self._mean: list[Tensor] = list(self.module.parameters())
        self._buffers = list(zip(self.module.buffers(), live.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)
