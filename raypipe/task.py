"""What is trained: the autoencoder, and the SDE's components, each with its loss on a batch."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.common.seeds import step_generator, step_seed
from raypipe.config import Component, Experiment
from raypipe.data.batches import TrainBatch
from raypipe.data.frames import to_float
from raypipe.fit import Schedule
from raypipe.models.autoencoder import Reconstruction
from raypipe.sde import losses
from raypipe.sde.path import Draws, PathSample, draw, sample_path


class ComponentTask:
    """Flow, denoiser or diffusion on windows of K + 1 latents, [b, K+1, C, h, w].

    flow: the frozen flow, for a diffusion. encode: makes latents of uint8 frames [b, T, H, W, 3], where they
    are not cached. Noise is drawn for the global batch from (seed, step) and each rank keeps its slice.
    """

    def __init__(
        self,
        module: nn.Module,
        experiment: Experiment,
        *,
        flow: nn.Module | None = None,
        encode: Callable[[TrainBatch], Tensor] | None = None,
    ) -> None:
        self.module = module
        self._settings = experiment
        self._flow = flow
        self._encode = encode
        component = experiment.train.component
        self._loss = _LOSSES[component, published_loss(component, experiment.train.loss)]
        self._zero_share = experiment.sde.zero_share if experiment.model.time_input else 0.0
        assert (component == "diffusion") == (flow is not None)

    def loss(self, batch: TrainBatch) -> Tensor:
        """The component's loss (the design's section 1), averaged over this rank's windows."""
        window = batch.data if self._encode is None else self._encode(batch)
        if self._settings.model.dropout > 0:  # a resumed training drops what an uninterrupted one would
            torch.manual_seed(step_seed(self._settings.train.random_seed, batch.step, 3 + batch.offset))
        draws = self._draws(batch, window)
        sample = sample_path(window, draws, self._settings.train.noise_std, self._settings.sde.sigma)
        output = self.module(sample.noisy, sample.time)
        residual = None
        if self._flow is not None:
            with torch.no_grad():
                residual = sample.velocity - self._flow(sample.noisy, sample.time)
        return self._loss(output.float(), sample, residual, self._settings.sde.delta)

    def _draws(self, batch: TrainBatch, window: Tensor) -> Draws:
        shape = (window.shape[2] * (window.shape[1] - 1), *window.shape[3:])
        generator = step_generator(self._settings.train.random_seed, batch.step, 0)
        draws = draw(generator, batch.total, shape, self._zero_share)
        mine = slice(batch.offset, batch.offset + len(window))
        return Draws(draws.time[mine].to(window.device), draws.normal[mine].to(window.device))


def published_loss(component: Component, loss: str | None) -> str | None:
    """The loss choice, where none is given the published one."""
    choices = config.LOSSES[component]
    return loss if loss is not None or not choices else choices[0]


_Loss = Callable[[Tensor, PathSample, Tensor | None, float], Tensor]


def _residual(residual: Tensor | None) -> Tensor:
    assert residual is not None
    return residual


_LOSSES: Mapping[tuple[Component, str | None], _Loss] = {
    ("flow", "nll"): lambda out, sample, _, delta: losses.flow_nll(out, sample.velocity, delta),
    ("flow", "mse"): lambda out, sample, _, delta: losses.flow_mse(out, sample.velocity),
    ("denoiser", None): lambda out, sample, _, delta: losses.denoiser(out, sample.noise),
    ("diffusion", "regression"): lambda out, _, r, delta: losses.diffusion_regression(out, _residual(r)),
    ("diffusion", "nll"): lambda out, _, r, delta: losses.diffusion_nll(out, _residual(r)),
}


class AutoencoderTask:
    """Reconstruction of frames, uint8 [b, 1, H, W, 3]: mean squared error, plus the quantizer's loss if any.

    background: the median frame of each clip, uint8 [clips, H, W, 3]; pixels away from it weigh
    `foreground_weight` times as much, since moving bodies cover few of them.
    """

    def __init__(self, module: nn.Module, settings: config.Autoencoder, seed: int, background: Tensor | None) -> None:
        self.module = module
        self._settings = settings
        self._seed = seed
        self._background = background

    def loss(self, batch: TrainBatch) -> Tensor:
        """Weighted mean squared error on a scale of [-1, 1], plus the auxiliary loss."""
        frames = to_float(batch.data[:, 0])
        weight = torch.ones_like(frames[:, :1])
        if self._background is not None and self._settings.foreground_weight > 1:
            behind = to_float(self._background[batch.clips.cpu()].to(frames.device))
            moving = (frames - behind).abs().amax(1, keepdim=True) > 0.1
            weight = weight + (self._settings.foreground_weight - 1) * moving
        if self._settings.symmetries:
            frames, weight = self._turn(batch, frames, weight)
        result: Reconstruction = self.module(frames)
        error = ((result.frames.float() - frames).square() * weight).mean((1, 2, 3))
        # Normalised frame by frame, so that the gradient does not depend on how ranks share a batch.
        return (error / weight.mean((1, 2, 3))).mean() + result.auxiliary_loss

    def _turn(self, batch: TrainBatch, frames: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Flip and transpose each frame, one of the square's eight symmetries."""
        generator = step_generator(self._seed, batch.step, 1)
        mine = slice(batch.offset, batch.offset + len(frames))
        choice = torch.randint(8, (batch.total,), generator=generator)[mine].to(frames.device)[:, None, None, None]
        both = torch.cat([frames, weight], 1)
        both = torch.where(choice % 2 == 0, both, both.flip(-1))
        both = torch.where(choice // 2 % 2 == 0, both, both.flip(-2))
        both = torch.where(choice // 4 == 0, both, both.transpose(-1, -2))
        return both[:, :3], both[:, 3:]


def component_schedule(train: config.Train) -> Schedule:
    return Schedule(
        train.steps,
        train.learning_rate,
        train.warmup_steps,
        train.schedule,
        train.weight_decay,
        train.clip_norm,
        train.accumulate,
    )


def autoencoder_schedule(settings: config.Autoencoder) -> Schedule:
    warmup = max(1, settings.steps // 20)
    return Schedule(settings.steps, settings.learning_rate, warmup, "cosine", settings.weight_decay)
