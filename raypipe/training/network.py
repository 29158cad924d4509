"""Base class of the trainings of autoencoders and components."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from raypipe import checkpoint
from raypipe.data.batches import WindowBatches
from raypipe.training.loop import Average, Progress, Schedule, Task, fit, make_optimizer


class NetworkTraining:
    """State of a training: the module, the moving average of its weights, the optimizer and the number of steps done.

    task: computes the loss with `module`, or with `module` wrapped by DDP or torch.compile. ema: decay of the moving
    average; 0: no averaging.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        batches: WindowBatches,
        schedule: Schedule,
        *,
        ema: float = 0.0,
        world_size: int = 1,
    ) -> None:
        self.step = 0
        self.module = module
        self.optimizer = make_optimizer(module, schedule)
        self.average = Average(module, ema) if ema > 0 else None
        self._task = task
        self._batches = batches
        self._schedule = schedule
        self._world_size = world_size

    @property
    def model(self) -> nn.Module:
        """The module to score and save: the one with averaged weights if there is one, else `module`."""
        return self.module if self.average is None else self.average.module

    def advance(self, stop: int, report: Callable[[Progress], None], every: int) -> None:
        """Train up to step `stop`, with a report every `every` steps; see `raypipe.training.loop.fit`."""

        def note(progress: Progress) -> None:
            self.step = progress.step
            self.reached(progress.step)
            report(progress)

        fit(
            self._task,
            self._batches.batch,
            self._schedule,
            note,
            optimizer=self.optimizer,
            average=self.average,
            start=self.step,
            stop=stop,
            every=every,
            world_size=self._world_size,
        )

    def reached(self, step: int) -> None:
        """Hook for subclasses, called before each report. step: steps done."""

    def restore(self, folder: Path) -> None:
        """Restore weights, moving average, optimizer state and step from a model folder."""
        self.step = checkpoint.restore(folder, self.module, self.optimizer, self.model)
