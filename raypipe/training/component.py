"""Training of the SDE's components: flow, denoiser, diffusion, and flow and diffusion in one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raypipe import checkpoint, config
from raypipe.checkpoint import Meta
from raypipe.common.device import choose_device
from raypipe.config import Experiment
from raypipe.data.batches import WindowBatches
from raypipe.data.shards import Shards
from raypipe.data.windows import Sampler, WindowIndex
from raypipe.models.components import Joint, build_component
from raypipe.training.component_task import chosen_loss, component_task
from raypipe.training.early_stopping import EarlyStopping
from raypipe.training.loop import Progress, Schedule
from raypipe.training.monitor import Label
from raypipe.training.network import NetworkTraining
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels, Workspace

SCALE_WINDOWS = 512
"""Number of pairs of latents that `movement_scale` reads."""


def component_schedule(train: config.Train) -> Schedule:
    """The schedule that the `train` section of a config describes."""
    return Schedule(
        train.steps,
        train.learning_rate,
        train.warmup_steps,
        train.schedule,
        train.weight_decay,
        train.clip_norm,
        train.accumulate,
    )


class ComponentTraining(NetworkTraining):
    """Training of a component. It is deterministic: all random numbers depend on train.random_seed.

    parents: a diffusion needs the flow. rank, world_size: of this worker. wrap: wraps the module for distributed
    training (DistributedDataParallel). device: None: see `choose_device`. early_stopping: see `NetworkTraining`.
    """

    def __init__(
        self,
        experiment: Experiment,
        data: ExperimentData,
        parents: ParentModels,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        device: torch.device | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        train, device = experiment.train, device or choose_device()
        self.experiment = experiment
        self._data = data
        self._parents = parents
        torch.manual_seed(train.random_seed)
        module = build_component(train.component, experiment.model, data.channels, experiment.sde.noise).to(device)
        predicted = min(train.forecast_frames, experiment.evaluation.horizon) if train.scores_forecasts else 1
        window, stride = experiment.model.num_input_frames + predicted, experiment.dataset.frame_stride
        shards = data.training_shards()
        index = WindowIndex(shards.lengths, window, stride)
        borders = index.borders(shards.shard_of)
        sampler = Sampler(len(index), train.batch_size, train.random_seed, rank, world_size, borders)
        flow = None
        if train.component == "diffusion":
            assert parents.flow is not None
            flow = checkpoint.load_component(parents.flow).to(device).requires_grad_(False)
        inner: nn.Module = torch.compile(module) if train.compile else module  # type: ignore[assignment]
        wrapped = inner if wrap is None else wrap(inner)
        encode = data.encoder(train.random_seed, device)
        scale = None
        if isinstance(module, Joint) and module.interpolates:
            scale = module.scale.copy_(movement_scale(data.latents("train"), stride))
        task = component_task(wrapped, experiment, flow=flow, noise_scale=scale, encode=encode)
        super().__init__(
            module,
            task,
            WindowBatches(shards, window, stride, sampler, pin_memory=device.type == "cuda"),
            component_schedule(train),
            ema=train.ema,
            early_stopping=early_stopping,
            world_size=world_size,
        )

    def advance(self, stop: int, report: Callable[[Progress], None], every: int | None = None) -> None:
        """Train up to step `stop`, with a report every `every` steps (None: train.checkpoint_every)."""
        super().advance(stop, report, every or self.experiment.train.checkpoint_every)

    def save(self, folder: Path, **changes: object) -> None:
        """Save a model folder that `restore` and `checkpoint.load_component` can read.

        changes: new values of fields of its Meta.
        """
        meta = replace(self.meta(), **changes)  # type: ignore[arg-type]
        checkpoint.save_component(folder, self.kept, meta, self.optimizer, live=self.module, average=self.model)

    def meta(self) -> Meta:
        """The Meta of the component at the current step."""
        train, parents = self.experiment.train, self._parents
        flow = parents.flow if train.component == "diffusion" else None
        return Meta(
            component=train.component,
            model=self.experiment.model,
            latent_channels=self._data.channels,
            noise=self.experiment.sde.noise if train.component == "joint" else None,
            noise_std=train.noise_std,
            loss=chosen_loss(train.component, train.loss),
            step=self.step,
            seed=train.random_seed,
            flow=None if flow is None else flow.name,
            flow_hash=None if flow is None else checkpoint.weights_hash(flow),
            autoencoder_hash=self._data.autoencoder_hash,
            extra={} if self.early_stopping is None else self.early_stopping.extra(),
        )


def movement_scale(latents: Shards, stride: int) -> Tensor:
    """Root mean square of z_{t+1} - z_t per channel, [C, 1, 1], over evenly spaced windows of the latents.

    stride: `dataset.frame_stride`. At least 1e-3, for channels that never change.
    """
    index = WindowIndex(latents.lengths, 2, stride)
    numbers = np.linspace(0, len(index) - 1, min(len(index), SCALE_WINDOWS)).astype(np.int64)
    pairs = torch.from_numpy(latents.windows(*index.locate(numbers), 2, stride)).float()
    return (pairs[:, 1] - pairs[:, 0]).square().mean((0, 2, 3)).sqrt().clamp(min=1e-3)[:, None, None]


def component_label(experiment: Experiment, workspace: Workspace) -> Label:
    """The wandb label of a component's training (run, trial or refit)."""
    settings = config.to_dict(experiment)
    return Label(
        f"{workspace.name}/{experiment.train.component}", {name: settings[name] for name in ("model", "train", "sde")}
    )
