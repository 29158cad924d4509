"""The training loop, used by trials and by Ray Train workers. Independent of Ray."""

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
"""Final learning rate of the `sqrt` schedule, as a fraction of the peak; from the reference code."""


class Task(Protocol):
    """A module, possibly wrapped by DDP or torch.compile, and its loss on a batch."""

    module: nn.Module

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's part of the batch, a scalar."""


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule and other settings of the optimizer.

    steps: total training steps. learning_rate: the peak. kind: decay after the warm-up; `cosine`: to 0; `sqrt`: to
    `LAST_RATE` of the peak, with the square root of the fraction of steps left, as in the reference code. clip_norm:
    largest norm of the gradient; None: no clipping, as in the reference code. accumulate: number of micro-batches into
    which a rank's batch is split for gradient accumulation.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    kind: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    accumulate: int = 1

    def rate(self, step: int) -> float:
        """The learning rate of a step; steps count from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        if self.kind == "sqrt":
            return self.learning_rate * (LAST_RATE + (1 - LAST_RATE) * math.sqrt(1 - done))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Average:
    """Exponential moving average of the parameters of `live`. module: a copy of `live` with them, in eval mode.

    The decay at step n is min(decay, (1 + n) / (10 + n)), which limits the influence of the initial weights. It only
    depends on the step, so a resumed training gives the same average as an uninterrupted one. Buffers, such as the
    running statistics of BatchNorm, are copied instead of averaged.

    torch's AveragedModel differs: its first update discards the initial weights, its decay is constant, and its state
    includes a counter, which model folders do not store.
    """

    def __init__(self, live: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(live).eval().requires_grad_(False)
        self._live: list[Tensor] = list(live.parameters())
        self._mean: list[Tensor] = list(self.module.parameters())
        self._buffers = list(zip(self.module.buffers(), live.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the current weights. step: the step just done, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)
        for mine, theirs in self._buffers:
            mine.copy_(theirs)


@dataclass(frozen=True)
class Progress:
    """A progress report. step: steps done. loss, grad_norm: means since the last report, over all ranks.

    seconds: time of the training steps since the last report, without checkpoints and scores. validation: score on
    validation at this step; None if it was not measured.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    windows_per_second: float
    seconds: float
    validation: float | None = None

    def metrics(self) -> dict[str, float]:
        """What was measured, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class DivergedError(ValueError):
    """The loss or the gradient is no longer finite."""


def make_optimizer(module: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """An AdamW optimizer for all parameters of the module."""
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
    """Train from step `start` up to step `stop` (None: schedule.steps).

    batches: returns this rank's part of the global batch of a step. The loss of each rank is weighted by the size of
    its part, so the gradient is that of the global batch for any number of ranks. report: called at multiples of
    `every` steps and after the last step; the ranks exchange their losses only then. average: updated after every step.
    Raises DivergedError, on all ranks, at the first report whose mean loss or gradient norm is not finite.
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
            mean_loss, mean_norm = (_mean_over_ranks(losses, world_size) / count).tolist()
            if not (math.isfinite(mean_loss) and math.isfinite(mean_norm)):
                what = f"loss is {mean_loss}" if not math.isfinite(mean_loss) else f"gradient's norm is {mean_norm}"
                raise DivergedError(f"the {what} by step {step + 1}; a lower learning rate may help")
            seconds = time.perf_counter() - since
            report(Progress(step + 1, mean_loss, mean_norm, schedule.rate(step), windows / seconds, seconds))
            losses.zero_()
            count, windows, since = 0, 0, time.perf_counter()
            task.module.train()


def _backward(task: Task, batch: TrainBatch, device: torch.device, accumulate: int, world_size: int) -> Tensor:
    """Accumulate the gradients of a batch, split into `accumulate` micro-batches.

    Returns the mean loss over this rank's windows, weighted so that its mean over ranks is the loss of the global
    batch.
    """
    total = torch.zeros((), device=device)
    parts = list(_micro_batches(batch, accumulate))
    for part in parts:
        with nullcontext() if part is parts[-1] else _no_gradient_sync(task.module):
            with autocast(device):
                loss = task.loss(part)
            weighted = loss * (len(part.data) * world_size / batch.total)
            weighted.backward()
        total += weighted.detach()
    return total


def _no_gradient_sync(module: nn.Module) -> AbstractContextManager[object]:
    """Context in which DDP does not average gradients over ranks, as those of later micro-batches are missing."""
    return module.no_sync() if isinstance(module, nn.parallel.DistributedDataParallel) else nullcontext()


def _micro_batches(batch: TrainBatch, count: int) -> Iterator[TrainBatch]:
    """Split a batch into `count` micro-batches of nearly equal size (at most one per window)."""
    borders = np.linspace(0, len(batch.data), min(count, len(batch.data)) + 1).round().astype(int).tolist()
    for begin, end in pairwise(borders):
        part = slice(begin, end)
        yield replace(batch, data=batch.data[part], clips=batch.clips[part], offset=batch.offset + begin)


def _mean_over_ranks(sums: Tensor, world_size: int) -> Tensor:
    """The mean of a tensor over ranks. Gradient norms are equal on all ranks with DDP, so their mean is the same."""
    if world_size == 1 or not torch.distributed.is_initialized():
        return sums
    sums = sums / world_size
    torch.distributed.all_reduce(sums)
    return sums
