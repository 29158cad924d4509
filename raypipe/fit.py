"""The training loop. Trials, Ray Train workers and tests all run this one; it knows nothing of Ray."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raypipe.data.dataset import TrainBatch
from raypipe.device import autocast


class Task(Protocol):
    """What is trained: a module (wrapped or not), and its loss on one batch."""

    module: nn.Module

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's part of the batch, a scalar."""


@dataclass(frozen=True)
class Schedule:
    """AdamW's settings. kind: `cosine` to 0 at `steps`, or `sqrt`: the peak times sqrt(warm-up / step)."""

    steps: int
    learning_rate: float
    warmup_steps: int = 0
    kind: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0 on: linear warm-up, then the decay."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.kind == "sqrt":
            return self.learning_rate * math.sqrt(max(1, self.warmup_steps) / max(1, step))
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Progress:
    """Where a training stands. loss and grad_norm are means since the last report; windows over all ranks."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    windows_per_second: float


class DivergedError(FloatingPointError):
    """The loss is not a number any more."""


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
    start: int = 0,
    stop: int | None = None,
    every: int = 250,
    world_size: int = 1,
) -> None:
    """Train from step `start` up to `stop` (the schedule's end, if left out).

    `batches(step)` gives this rank's part of the step's global batch. Ranks' losses are weighted by their
    parts' sizes, so that the gradient is that of the global batch whatever the number of ranks.
    `report` is called every `every` steps, on multiples of it, and at the end.
    Raises DivergedError at the first report whose mean loss or gradient norm is not finite.
    """
    stop = schedule.steps if stop is None else stop
    parameters = [p for p in task.module.parameters() if p.requires_grad]
    device = parameters[0].device
    task.module.train()
    losses = torch.zeros(2, device=device)
    count, windows, since = 0, 0, time.perf_counter()
    for step in range(start, stop):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        batch = batches(step).to(device)
        with autocast(device):
            loss = task.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        (loss * (len(batch.data) * world_size / batch.total)).backward()
        norm = nn.utils.clip_grad_norm_(parameters, schedule.clip_norm)
        optimizer.step()
        losses += torch.stack([loss.detach(), norm.detach()])
        count, windows = count + 1, windows + batch.total
        if (step + 1) % every == 0 or step + 1 == stop:
            mean_loss, mean_norm = (losses / count).tolist()
            if not (math.isfinite(mean_loss) and math.isfinite(mean_norm)):
                what = f"loss is {mean_loss}" if not math.isfinite(mean_loss) else f"gradient's norm is {mean_norm}"
                raise DivergedError(f"the {what} by step {step + 1}; a lower learning rate may help")
            now = time.perf_counter()
            report(Progress(step + 1, mean_loss, mean_norm, schedule.rate(step), windows / (now - since)))
            losses.zero_()
            count, windows, since = 0, 0, time.perf_counter()
            task.module.train()
