"""A network in training: what the autoencoder's training and a component's have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from raypipe import checkpoint
from raypipe.data.batches import WindowBatches
from raypipe.training.loop import Average, Progress, Schedule, Task, fit, make_optimizer


class NetworkTraining:
    """Weights, their moving average if `ema` is above 0, optimizer, batches, and the step reached.

    task: the loss, of `module` itself or of what a launcher wrapped around it.
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
        """What is scored and saved as the model: the average, or the weights themselves."""
        return self.module if self.average is None else self.average.module

    def advance(self, stop: int, report: Callable[[Progress], None], every: int) -> None:
        """Train up to step `stop`, reporting every `every` steps; see `raypipe.training.loop.fit`."""

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
        """Called before every report, for what is to be done at some step."""

    def restore(self, folder: Path) -> None:
        """Go on from a saved folder: weights, average, optimizer and step."""
        self.step = checkpoint.restore(folder, self.module, self.optimizer, self.model)
