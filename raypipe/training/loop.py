"""The training loop. Trials, Ray Train workers and tests all run this one; it knows nothing of Ray."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raypipe.common.device import autocast
from raypipe.data.batches import TrainBatch

LAST_RATE = 1e-3
"""Where the published schedule ends, in parts of the peak."""


class Task(Protocol):
    """What is trained: a module (wrapped or not), and its loss on one batch."""

    module: nn.Module

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's part of the batch, a scalar."""


@dataclass(frozen=True)
class Schedule:
    """AdamW's settings.

    kind: `cosine` to 0 at `steps`; or `sqrt`, as published: to a thousandth of the peak, with the square root
    of the share of steps that is left. clip_norm: None for no clipping, as published. accumulate: parts that a
    rank's batch is cut into, whose gradients are added up.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    kind: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    accumulate: int = 1

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0 on: linear warm-up, then the decay."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.kind == "sqrt":
            return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * math.sqrt(1 - done))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


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


@dataclass(frozen=True)
class Progress:
    """Where a training stands, over all ranks. loss and grad_norm are means since the last report."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    windows_per_second: float


class DivergedError(ValueError):
    """The loss is not a number any more: the settings do not work."""


def make_optimizer(module: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        module.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True
    )


def fit(
    task: Task,
    batches: Callable[[int], TrainBatch],
    schedule: Schedule,
    report: Callable[[Progress], None],
    *,
    optimizer: torch.optim.Optimizer,
    average: Average | None = None,
    start: int = 0,
    stop: int | None = None,
    every: int = 250,
    world_size: int = 1,
) -> None:
    """Train from step `start` up to `stop` (the schedule's end, if left out).

    `batches(step)` gives this rank's part of the step's global batch. Ranks' losses are weighted by their
    parts' sizes, so that the gradient is that of the global batch whatever the number of ranks.
    `report` is called every `every` steps, on multiples of it, and at the end; ranks exchange their losses
    only then. `average` follows the weights.
    Raises DivergedError at the first report whose mean loss or gradient norm is not finite, on all ranks alike.
    """
    stop = schedule.steps if stop is None else stop
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    device = parameters[0].device
    clip_norm = math.inf if schedule.clip_norm is None else schedule.clip_norm
    task.module.train()
    losses = torch.zeros(2, device=device)
    count, windows, since = 0, 0, time.perf_counter()
    for step in range(start, stop):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        batch = batches(step).to(device)
        optimizer.zero_grad(set_to_none=True)
        loss = _backward(task, batch, device, schedule.accumulate, world_size)
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        if average is not None:
            average.update(step)
        losses += torch.stack([loss, norm.detach()])
        count, windows = count + 1, windows + batch.total
        if (step + 1) % every == 0 or step + 1 == stop:
            mean_loss, mean_norm = (_over_ranks(losses, world_size) / count).tolist()
            if not (math.isfinite(mean_loss) and math.isfinite(mean_norm)):
                what = f"loss is {mean_loss}" if not math.isfinite(mean_loss) else f"gradient's norm is {mean_norm}"
                raise DivergedError(f"the {what} by step {step + 1}; a lower learning rate may help")
            now = time.perf_counter()
            report(Progress(step + 1, mean_loss, mean_norm, schedule.rate(step), windows / (now - since)))
            losses.zero_()
            count, windows, since = 0, 0, time.perf_counter()
            task.module.train()


def _backward(task: Task, batch: TrainBatch, device: torch.device, accumulate: int, world_size: int) -> Tensor:
    """Add up the gradients of a batch's parts; the loss over this rank's windows, weighted by their share."""
    total = torch.zeros((), device=device)
    parts = list(_parts(batch, accumulate))
    for part in parts:
        with nullcontext() if part is parts[-1] else _without_exchange(task.module):
            with autocast(device):
                loss = task.loss(part)
            weighted = loss * (len(part.data) * world_size / batch.total)
            weighted.backward()
        total += weighted.detach()
    return total


def _without_exchange(module: nn.Module) -> AbstractContextManager[object]:
    """Keeps DDP's ranks from averaging gradients that are not complete yet."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def _parts(batch: TrainBatch, count: int) -> Iterator[TrainBatch]:
    """A batch in `count` parts of nearly equal size (or one a window, if there are fewer)."""
    borders = np.linspace(0, len(batch.data), min(count, len(batch.data)) + 1).round().astype(int).tolist()
    for begin, end in pairwise(borders):
        part = slice(begin, end)
        yield replace(batch, data=batch.data[part], clips=batch.clips[part], offset=batch.offset + begin)


def _over_ranks(sums: Tensor, world_size: int) -> Tensor:
    """The mean over ranks; of gradient norms too, which DDP has made the same everywhere."""
    if world_size == 1 or not torch.distributed.is_initialized():
        return sums
    sums = sums / world_size
    torch.distributed.all_reduce(sums)
    return sums
