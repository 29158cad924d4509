"""What Ray Train is given to train: jobs, and how they run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from raypipe.checkpoint import read_meta
from raypipe.training.monitor import Label


class Trainee(Protocol):
    """A network in training, which can be saved and resumed at any step."""

    step: int

    def advance(self, stop: int, report: Any, every: int) -> None: ...
    def save(self, folder: Path) -> None: ...
    def restore(self, folder: Path) -> None: ...


class Job(Protocol):
    """One training, described so that any worker can begin it."""

    @property
    def folder(self) -> Path:
        """Where the trained model goes; it stands there once the training is over."""

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

    name: the Ray run's name, unique below `storage`; a run that is resumed must have the same name.
    side_by_side: each worker trains jobs of its own instead of a share of every job, which is faster when there are
    at least as many jobs as workers. start_from: the saved model folder that the only job starts from.
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
    side_by_side: bool = False


def finished(job: Job) -> bool:
    """Whether the trained model stands in its folder."""
    folder = job.folder
    return (folder / "config.json").is_file() and read_meta(folder).step >= job.steps
