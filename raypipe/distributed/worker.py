"""The train loop of a Ray Train worker: all workers train each job together, or each worker trains different jobs."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from torch import nn

from raypipe.distributed.training_job import Job, Settings, Trainee, finished
from raypipe.training.loop import DivergedError, Progress
from raypipe.training.monitor import Monitor

REPORTS_A_CHECKPOINT = 5
"""Number of times that progress is written between two checkpoints."""


def work(payload: dict[str, Any]) -> str | None:
    """The train loop of a worker. payload: {"jobs": list[Job], "settings": Settings}.

    Returns why a job diverged, or None. An exception would make Ray restart the workers, which would diverge again.
    """
    settings: Settings = payload["settings"]
    group = Group.of_this_worker()
    if group.device.type == "cuda":
        torch.cuda.set_device(group.device)
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))
    train = train_side_by_side if settings.side_by_side else train_together
    return train(payload["jobs"], settings, group)


@dataclass(frozen=True)
class Group:
    """This worker's place among all workers of the run."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def of_this_worker(cls) -> "Group":
        context = ray.train.get_context()
        return cls(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())

    def largest(self, mine: int) -> int:
        """The largest value of any rank."""
        if self.size == 1:
            return int(mine)
        value = torch.tensor([int(mine)], device=self.device)
        torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
        return int(value.item())

    def first_text(self, mine: str | None) -> str | None:
        """The text of the lowest rank that has one; None if no rank has."""
        texts = [mine] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(texts, mine)
        return next((text for text in texts if text is not None), None)

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a module in DistributedDataParallel, which averages the gradients over all ranks."""
        ids = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)


def train_together(jobs: Sequence[Job], settings: Settings, group: Group) -> str | None:
    """Train one job after the other, each on all ranks. Returns why a job diverged, or None."""
    for job in jobs:
        # The trained model may appear while the ranks check for it; they must all decide the same.
        if group.largest(finished(job)):
            continue
        wrap = None if group.size == 1 else group.wrap
        run = JobRun.begin(job, settings, job.build(group.rank, group.size, group.device, wrap))
        failure = group.first_text(run.train(writes=group.rank == 0))
        if failure is not None:
            return failure
    return None


def train_side_by_side(jobs: Sequence[Job], settings: Settings, group: Group) -> str | None:
    """Train as many jobs at a time as there are ranks, one on each. Returns why a job diverged, or None."""
    for start in range(0, len(jobs), group.size):
        batch, run = jobs[start : start + group.size], None
        if group.rank < len(batch) and not finished(batch[group.rank]):
            job = batch[group.rank]
            run = JobRun.begin(job, settings, job.build(0, 1, group.device, None))
        most = group.largest(0 if run is None else run.reports_left)
        failure = None if run is None else run.train(writes=True)
        # ray.train.report blocks until all ranks have called it, so every rank must report equally often.
        for _ in range(most - (0 if run is None else run.reports)):
            ray.train.report({})
        failure = group.first_text(failure)
        if failure is not None:
            return failure
    return None


def checkpoint_name(job: Job) -> str:
    """Name of a job's folder inside the checkpoints of a run, which may train several jobs."""
    return f"{job.folder.parent.name}-{job.folder.name}"


@dataclass
class JobRun:
    """A job in training on this rank. reports: number of reports made to Ray so far."""

    job: Job
    trainee: Trainee
    wandb: bool
    reports: int = 0

    @classmethod
    def begin(cls, job: Job, settings: Settings, trainee: Trainee) -> "JobRun":
        """Resume from the run's last checkpoint if the job is in it, else start from `settings.start_from`, if any."""
        latest = ray.train.get_checkpoint()
        if latest is not None:
            with latest.as_directory() as folder:
                saved = Path(folder) / checkpoint_name(job)
                if saved.is_dir():
                    trainee.restore(saved)
        if trainee.step == 0 and settings.start_from is not None:
            trainee.restore(settings.start_from)
        return cls(job, trainee, wandb=settings.wandb)

    @property
    def reports_left(self) -> int:
        """Number of checkpoints between the current step and the last step, each reported to Ray."""
        every, start, end = self.job.checkpoint_every, self.trainee.step, self.job.steps
        return end // every - start // every + (end % every != 0 and start < end)

    def train(self, *, writes: bool) -> str | None:
        """Train to the last step, or until early stopping ends the training.

        writes: whether this rank writes checkpoints, metrics and the model. Returns why the job diverged, or None.
        """
        job, label = self.job, self.job.label if self.wandb else None
        monitor = Monitor(job.folder, self.trainee.step, wandb=label) if writes else None

        def report(progress: Progress) -> None:
            if monitor is not None:
                monitor.log(progress.metrics())
            if progress.step % job.checkpoint_every and progress.step != job.steps:
                return
            self.reports += 1
            if not writes:
                ray.train.report({})
                return
            with tempfile.TemporaryDirectory() as folder:
                self.trainee.save(Path(folder) / checkpoint_name(job))
                ray.train.report(progress.metrics(), checkpoint=Checkpoint.from_directory(folder))

        try:
            self.trainee.advance(job.steps, report, max(1, job.checkpoint_every // REPORTS_A_CHECKPOINT))
        except DivergedError as error:
            return f"{job.folder.name}: {error}"
        finally:
            if monitor is not None:
                monitor.close()
        if writes:
            self.trainee.save(job.folder)
        return None
