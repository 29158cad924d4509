"""The interface between Ray Train and the trainings: jobs, and the settings of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from raypipe.checkpoint import read_meta
from raypipe.training.early_stopping import validated
from raypipe.training.monitor import Label


class Trainee(Protocol):
    """A network in training, which can be saved and resumed at any step.

    advance: train up to step `stop`, calling `report` every `every` steps and at the end.
    """

    step: int

    def advance(self, stop: int, report: Any, every: int) -> None: ...
    def save(self, folder: Path) -> None: ...
    def restore(self, folder: Path) -> None: ...


class Job(Protocol):
    """The description of one training; `build` starts it on a worker."""

    @property
    def folder(self) -> Path:
        """Folder of the trained model, written when the training is finished."""

    @property
    def steps(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def label(self) -> Label: ...
    def build(self, rank: int, world_size: int, device: torch.device, wrap: Any) -> Trainee: ...


@dataclass(frozen=True)
class Settings:
    """How jobs run under Ray Train.

    storage: the folder in which Ray Train keeps its runs. name: the Ray run's name, unique in `storage`; a run that is
    resumed must have the same name. start_from: folder of a saved model from which the job starts; for a single job.
    keep_checkpoints: whether the run's checkpoints stay when it has ended; the trained models are elsewhere.
    side_by_side: every job is trained by one worker instead of by all workers together, which is faster if there are
    at least as many jobs as workers.
    """

    storage: Path
    name: str
    num_workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: float = 1
    max_failures: int = 3
    wandb: bool = False
    start_from: Path | None = None
    show_progress: bool = True
    keep_checkpoints: bool = False
    side_by_side: bool = False


def finished(job: Job) -> bool:
    """Whether the folder of a job holds a model with all training steps, or one whose training ended early."""
    folder = job.folder
    if not (folder / "config.json").is_file():
        return False
    meta = read_meta(folder)
    found = validated(meta)
    return meta.step >= job.steps or (found is not None and found.stopped)
