"""The training jobs of an experiment: its autoencoder and its components."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raypipe import config
from raypipe.config import Experiment
from raypipe.distributed.training_job import Settings, Trainee
from raypipe.distributed.validation import early_stopping
from raypipe.training.autoencoder import AutoencoderTraining
from raypipe.training.component import ComponentTraining, component_label
from raypipe.training.monitor import Label
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels, Workspace


def run_settings(
    experiment: Experiment,
    workspace: Workspace,
    name: str,
    *,
    use_gpu: bool = False,
    batch: int | None = None,
    **more: Any,
) -> Settings:
    """Settings of a training job, with the largest number of workers up to train.num_workers that divides the batch.

    batch: training samples per step; None for train.batch_size. more: further fields of `Settings`.
    """
    batch = batch or experiment.train.batch_size
    workers = max(n for n in range(1, experiment.train.num_workers + 1) if batch % n == 0)
    return Settings(
        storage=workspace.ray / "train",
        name=name,
        num_workers=workers,
        use_gpu=use_gpu,
        cpus_per_worker=experiment.train.cpus_per_worker,
        max_failures=experiment.train.max_failures,
        **more,
    )


@dataclass(frozen=True)
class AutoencoderJob:
    """The training of an experiment's autoencoder."""

    experiment: Experiment
    workspace: Workspace

    @property
    def folder(self) -> Path:
        return self.workspace.autoencoder

    @property
    def steps(self) -> int:
        return self.experiment.autoencoder.steps

    @property
    def checkpoint_every(self) -> int:
        return max(1, self.steps // 4)

    @property
    def label(self) -> Label:
        return Label(f"{self.workspace.name}/autoencoder", config.to_dict(self.experiment.autoencoder))

    def build(self, rank: int, world_size: int, device: torch.device, wrap: Any) -> Trainee:
        frames = ExperimentData(self.experiment, self.workspace).frames("train")
        return AutoencoderTraining(self.experiment, frames, rank=rank, world_size=world_size, wrap=wrap, device=device)


@dataclass(frozen=True)
class ComponentJob:
    """The training of one component. The model is saved in the folder `<component>/<name>` of the experiment."""

    experiment: Experiment
    workspace: Workspace
    name: str
    parents: ParentModels = ParentModels()

    @property
    def folder(self) -> Path:
        return self.workspace.run(self.experiment.train.component, self.name)

    @property
    def steps(self) -> int:
        return self.experiment.train.steps

    @property
    def checkpoint_every(self) -> int:
        return self.experiment.train.checkpoint_every

    @property
    def label(self) -> Label:
        return component_label(self.experiment, self.workspace)

    def build(self, rank: int, world_size: int, device: torch.device, wrap: Any) -> Trainee:
        data = ExperimentData(self.experiment, self.workspace)
        return ComponentTraining(
            self.experiment,
            data,
            self.parents,
            rank=rank,
            world_size=world_size,
            wrap=wrap,
            device=device,
            early_stopping=early_stopping(self.experiment, data, self.parents, rank, world_size),
        )
