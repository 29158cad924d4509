"""The loss of each component on a batch: `component_task` chooses it by the config."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.config import Component, Experiment
from raypipe.data.batches import TrainBatch
from raypipe.sde import losses
from raypipe.sde.brownian import brownian_end
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.interpolants import INTERPOLANTS
from raypipe.sde.path import PathSample, stack
from raypipe.training.forecast_task import ForecastTask
from raypipe.training.loop import Task
from raypipe.training.sampling import Encoder, begin_step, noise_keys, sample_paths

VELOCITY = "velocity"
"""Loss of a joint network with additive noise before its score, see `raypipe.sde.losses.joint`."""


def component_task(
    module: nn.Module,
    experiment: Experiment,
    *,
    flow: nn.Module | None = None,
    noise_scale: Tensor | None = None,
    encode: Encoder | None = None,
) -> Task:
    """The loss of the component that `experiment.train` describes.

    flow: the frozen flow of a diffusion. noise_scale: `Joint.scale` of a network that sees the noise. encode: see
    `begin_step`.
    """
    train = experiment.train
    if not train.scores_forecasts:
        return ComponentTask(module, experiment, flow=flow, encode=encode)
    before: Task
    if noise_scale is not None:
        before = InterpolantTask(module, experiment, noise_scale, encode=encode)
        dynamics = Dynamics.along(experiment.sde.noise, module, noise_scale)
    else:
        loss = VELOCITY if flow is None else "nll"
        before = ComponentTask(module, experiment, loss, flow=flow, encode=encode)
        dynamics = Dynamics(flow or module, diffusion=module)
    return ForecastTask(module, experiment, before, dynamics, encode=encode)


class ComponentTask:
    """The loss of a component on the first K + 1 latents of windows [b, frames, C, h, w]; see `raypipe.sde`.

    loss: its name; None: that of the config. flow: the frozen flow whose residual a diffusion is trained on. encode:
    see `begin_step`.
    """

    def __init__(
        self,
        module: nn.Module,
        experiment: Experiment,
        loss: str | None = None,
        *,
        flow: nn.Module | None = None,
        encode: Encoder | None = None,
    ) -> None:
        self.module = module
        self._settings = experiment
        self._flow = flow
        self._encode = encode
        component = experiment.train.component
        self._loss = _LOSSES[component, loss or chosen_loss(component, experiment.train.loss)]
        assert (component == "diffusion") == (flow is not None)

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's windows, a scalar."""
        window = begin_step(self._settings, batch, self._encode)
        sample = sample_paths(self._settings, batch, window)
        output = self.module(sample.noisy, sample.time)
        residual = None
        if self._flow is not None:
            with torch.no_grad():
                residual = sample.velocity - self._flow(sample.noisy, sample.time)
        return self._loss(output.float(), sample, residual, self._settings.sde.delta)


class InterpolantTask:
    """The loss of a joint network on the interpolant that `sde.noise` names, on windows as in `ComponentTask`.

    mean((target - f(X_t + eps, u, q))^2 / c^2), see `raypipe.sde.interpolants`. noise_scale: c [C, 1, 1]. encode: see
    `begin_step`.
    """

    def __init__(
        self, module: nn.Module, experiment: Experiment, noise_scale: Tensor, *, encode: Encoder | None = None
    ) -> None:
        self.module = module
        self._settings = experiment
        self._scale = noise_scale
        self._encode = encode

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's windows, a scalar."""
        window = begin_step(self._settings, batch, self._encode)
        sample = sample_paths(self._settings, batch, window)
        keys = noise_keys(self._settings, batch, window.device)
        noise = self._scale * brownian_end(keys, 0, window.shape[2:])
        u, given = sample.time[:, None, None, None], window[:, : self._settings.model.num_input_frames]
        way = INTERPOLANTS[self._settings.sde.noise]
        seen = way.seen(way.gone(sample.velocity, noise, u), noise, u)
        answer = self.module(stack(given) + sample.noise, sample.time, seen).float()
        return losses.flow_mse(answer / self._scale, way.target(sample.velocity, noise, u) / self._scale)


def chosen_loss(component: Component, loss: str | None) -> str | None:
    """The name of a component's loss; None selects the default. A denoiser's loss has no name, so it stays None."""
    choices = config.LOSSES[component]
    return loss if loss is not None or not choices else choices[0]


_Loss = Callable[[Tensor, PathSample, Tensor | None, float], Tensor]
"""(network output, sample on the path, residual of the flow for a diffusion, delta) -> loss."""


def _residual(residual: Tensor | None) -> Tensor:
    assert residual is not None
    return residual


def _joint(output: Tensor, velocity: Tensor) -> Tensor:
    f, g = output.chunk(2, dim=1)
    return losses.joint(f, g, velocity)


_LOSSES: Mapping[tuple[Component, str | None], _Loss] = {
    ("flow", "nll"): lambda out, sample, _, delta: losses.flow_nll(out, sample.velocity, delta),
    ("flow", "mse"): lambda out, sample, _, delta: losses.flow_mse(out, sample.velocity),
    ("denoiser", None): lambda out, sample, _, delta: losses.denoiser(out, sample.noise),
    ("diffusion", "regression"): lambda out, _, r, delta: losses.diffusion_regression(out, _residual(r)),
    ("diffusion", "nll"): lambda out, _, r, delta: losses.diffusion_nll(out, _residual(r)),
    ("joint", VELOCITY): lambda out, sample, _, delta: _joint(out, sample.velocity),
}
