"""One configuration of one component: how it is trained, and how it is scored. No Ray in here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raypipe import checkpoint, forecast
from raypipe.checkpoint import Meta
from raypipe.common.device import choose_device
from raypipe.config import Component, Evaluation, Experiment
from raypipe.data.batches import WindowBatches
from raypipe.data.windows import Sampler, WindowIndex
from raypipe.fit import Progress
from raypipe.metrics.ensemble import Score
from raypipe.models.components import build_component
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from raypipe.sde.solvers import SOLVERS
from raypipe.task import ComponentTask, component_schedule, published_loss
from raypipe.training import NetworkTraining
from raypipe.workspace.dataset import Sources


@dataclass(frozen=True)
class Parents:
    """The trained models that a stage builds on: the flow, for a denoiser or a diffusion, and the denoiser."""

    flow: Path | None = None
    denoiser: Path | None = None


class Training(NetworkTraining):
    """A component in training.

    wrap: what a launcher puts around the module (DistributedDataParallel). Weights are drawn from
    train.random_seed, so two trainings of one configuration begin, and go on, alike.
    """

    def __init__(
        self,
        experiment: Experiment,
        sources: Sources,
        parents: Parents,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        device: torch.device | None = None,
    ) -> None:
        train, device = experiment.train, device or choose_device()
        self.experiment = experiment
        self._sources = sources
        self._parents = parents
        torch.manual_seed(train.random_seed)
        module = build_component(train.component, experiment.model, sources.channels).to(device)
        window, stride = experiment.model.num_input_frames + 1, experiment.dataset.frame_stride
        shards = sources.training()
        index = WindowIndex(shards.lengths, window, stride)
        borders = index.borders(shards.shard_of)
        sampler = Sampler(len(index), train.batch_size, train.random_seed, rank, world_size, borders)
        flow = None
        if train.component == "diffusion":
            assert parents.flow is not None
            flow = checkpoint.load_component(parents.flow).to(device).requires_grad_(False)
        inner: nn.Module = torch.compile(module) if train.compile else module  # type: ignore[assignment]
        wrapped = inner if wrap is None else wrap(inner)
        super().__init__(
            module,
            ComponentTask(wrapped, experiment, flow=flow, encode=sources.encoder(train.random_seed, device)),
            WindowBatches(shards, window, stride, sampler, pin_memory=device.type == "cuda"),
            component_schedule(train),
            ema=train.ema,
            world_size=world_size,
        )

    def advance(self, stop: int, report: Callable[[Progress], None], every: int | None = None) -> None:
        """Train up to step `stop`, reporting every `every` (train.checkpoint_every) steps."""
        super().advance(stop, report, every or self.experiment.train.checkpoint_every)

    def save(self, folder: Path, **changes: object) -> None:
        """A folder that `restore` and `checkpoint.load_component` read; `changes` are fields of its Meta."""
        meta = replace(self.meta(), **changes)  # type: ignore[arg-type]
        checkpoint.save_component(folder, self.model, meta, self.optimizer, live=self.module)

    def meta(self) -> Meta:
        train, parents = self.experiment.train, self._parents
        flow = parents.flow if train.component == "diffusion" else None
        return Meta(
            component=train.component,
            model=self.experiment.model,
            latent_channels=self._sources.channels,
            noise_std=train.noise_std,
            loss=published_loss(train.component, train.loss),
            step=self.step,
            seed=train.random_seed,
            flow=None if flow is None else flow.name,
            flow_hash=None if flow is None else checkpoint.weights_hash(flow),
            autoencoder_hash=self._sources.autoencoder_hash,
        )


@dataclass(frozen=True)
class Scored:
    """A component's score on the held-out windows.

    magnitude: the constant diffusion's multiplier, or beta, fitted on training windows; residual_std: the
    flow's, [C], on training windows at u = 0; nfe_per_frame: network evaluations that a predicted frame takes.
    """

    score: Score
    magnitude: float
    residual_std: tuple[float, ...]
    nfe_per_frame: int


class Scorer:
    """Scores components of one stage on the same windows, with the same noise, whatever they were trained on."""

    def __init__(self, experiment: Experiment, sources: Sources, parents: Parents) -> None:
        evaluation = experiment.evaluation
        self._experiment = experiment
        self._held_out = forecast.forecast_windows(
            sources.split("val"), experiment, evaluation.windows, evaluation.seed
        )
        self._fitting = forecast.forecast_windows(
            sources.split("train"), experiment, evaluation.fit_windows, evaluation.seed + 1
        )
        device = choose_device()
        self._flow = None if parents.flow is None else checkpoint.load_component(parents.flow).to(device)
        self._denoiser = None if parents.denoiser is None else checkpoint.load_component(parents.denoiser).to(device)

    def __call__(self, component: Component, module: nn.Module | None, evaluation: Evaluation | None = None) -> Scored:
        """The score of `module` (None: no denoiser at all) in the forecast that its stage prescribes.

        flow: with a constant diffusion; denoiser: the best flow with it, and a constant; diffusion: the
        best flow and denoiser with it. The magnitude is fitted on training windows each time.
        evaluation: whose first steps and solver integrate, where a trial has its own; the windows stay.
        """
        was_training = module is not None and module.training
        if module is not None:
            module.eval()
        make, std = _DYNAMICS[component](self, module)
        evaluation = evaluation or self._experiment.evaluation
        steps, solver = evaluation.steps[0], SOLVERS[evaluation.solvers[0]]
        candidates = evaluation.betas if component == "diffusion" else evaluation.multipliers
        fitted = forecast.fit_magnitude(make, candidates, self._fitting, evaluation, steps)
        dynamics = make(fitted.value)
        result = forecast.score(dynamics, self._held_out, evaluation, steps)
        if module is not None:
            module.train(was_training)
        return Scored(result, fitted.value, tuple(std.tolist()), steps * dynamics.evaluations(solver))

    def constant(self, flow: nn.Module) -> Tensor:
        return forecast.residual_std(flow, self._fitting, self._experiment.sde.sigma)

    def _with_flow(self, module: nn.Module | None) -> tuple[Callable[[float], Dynamics], Tensor]:
        assert module is not None
        std = self.constant(module)
        return lambda m: Dynamics(module, diffusion=ConstantDiffusion(m * std)), std

    def _with_denoiser(self, module: nn.Module | None) -> tuple[Callable[[float], Dynamics], Tensor]:
        flow = self._flow
        assert flow is not None
        std = self.constant(flow)
        return lambda m: Dynamics(flow, module, ConstantDiffusion(m * std)), std

    def _with_diffusion(self, module: nn.Module | None) -> tuple[Callable[[float], Dynamics], Tensor]:
        flow, denoiser = self._flow, self._denoiser
        assert flow is not None
        assert module is not None
        return lambda beta: Dynamics(flow, denoiser, module, beta=beta), self.constant(flow)


_DYNAMICS: Mapping[Component, Callable[[Scorer, nn.Module | None], tuple[Callable[[float], Dynamics], Tensor]]] = {
    "flow": Scorer._with_flow,
    "denoiser": Scorer._with_denoiser,
    "diffusion": Scorer._with_diffusion,
}


def window_scores(score: Score) -> np.ndarray:
    """crps and reference of each window and step, [2, windows, horizon]: what paired differences need."""
    return np.stack([score.crps, score.reference])
