"""Base class of the trainings of autoencoders and components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from raypipe import checkpoint
from raypipe.data.batches import WindowBatches
from raypipe.training.early_stopping import EarlyStopping
from raypipe.training.loop import Average, Progress, Schedule, Task, fit, make_optimizer


class NetworkTraining:
    """State of a training: the module, the moving average of its weights, the optimizer and the number of steps done.

    task: computes the loss with `module`, or with `module` wrapped by DDP or torch.compile. ema: decay of the moving
    average; 0: no averaging. early_stopping: scores the model now and then; None: the training goes on to the last step
    and its last weights are kept.
    """

    def __init__(
        self,
        module: nn.Module,
        task: Task,
        batches: WindowBatches,
        schedule: Schedule,
        *,
        ema: float = 0.0,
        early_stopping: EarlyStopping | None = None,
        world_size: int = 1,
    ) -> None:
        self.step = 0
        self.module = module
        self.optimizer = make_optimizer(module, schedule)
        self.average = Average(module, ema) if ema > 0 else None
        self.early_stopping = early_stopping
        self._task = task
        self._batches = batches
        self._schedule = schedule
        self._world_size = world_size

    @property
    def model(self) -> nn.Module:
        """The module to score: the one with averaged weights if there is one, else `module`."""
        return self.module if self.average is None else self.average.module

    @property
    def kept(self) -> nn.Module:
        """The module to save: that with the best score on validation if there is one, else `model`."""
        best = None if self.early_stopping is None else self.early_stopping.best
        return self.model if best is None else best

    def advance(self, stop: int, report: Callable[[Progress], None], every: int) -> None:
        """Train up to step `stop`, with a report every `every` steps; see `raypipe.training.loop.fit`.

        With early stopping, there are also reports at its checks, and the training may end before.
        """
        stopping = self.early_stopping

        def note(progress: Progress) -> None:
            self.step = progress.step
            self.reached(progress.step)
            if stopping is not None:
                progress = replace(progress, validation=stopping.check(self.step, self.model))
            report(progress)

        while self.step < stop and not (stopping is not None and stopping.found.stopped):
            fit(
                self._task,
                self._batches.batch,
                self._schedule,
                note,
                optimizer=self.optimizer,
                average=self.average,
                start=self.step,
                stop=stop if stopping is None else min(stop, stopping.next_check(self.step)),
                every=every,
                world_size=self._world_size,
            )

    def reached(self, step: int) -> None:
        """Hook for subclasses, called before each report. step: steps done."""

    def restore(self, folder: Path) -> None:
        """Restore weights, moving average, optimizer state and step from a model folder."""
        self.step = checkpoint.restore(folder, self.module, self.optimizer, self.model)
        if self.early_stopping is not None:
            self.early_stopping.restore(folder, self.model)
