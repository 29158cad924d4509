"""Two models of noise that `ablations.py` compares with those of raypipe: flow matching, and learned noise fields."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raypipe.common.seeds import step_generator
from raypipe.config import Experiment
from raypipe.data.batches import TrainBatch
from raypipe.models.backbones import build_backbone
from raypipe.models.components import Joint, bounded
from raypipe.sde import losses
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.path import stack
from raypipe.training.forecast_task import ForecastTask
from raypipe.training.sampling import sample_paths


class FieldNoise(Joint):
    """Additive noise of learned fields: the increment over a frame interval is f + g xi + sum_r a_r(X) xi_r.

    One network with 2 + R outputs per channel, evaluated at u = 0. xi_r are the components of xi [C, h, w] along R
    orthonormal patterns, so that the forecast is a function of xi as with `sde.noise: input`.
    """

    def __init__(self, experiment: Experiment, channels: int, size: tuple[int, int], fields: int) -> None:
        model = experiment.model
        network = build_backbone(model, model.num_input_frames * channels, (2 + fields) * channels, model.time_input)
        super().__init__(network, channels, "input", model.logit_range)
        shape = (channels, *size)
        noise = torch.randn(channels * size[0] * size[1], fields, generator=torch.Generator().manual_seed(0))
        self.register_buffer("patterns", torch.linalg.qr(noise)[0].T.reshape(fields, *shape))
        self.patterns: Tensor

    def heads(self, x: Tensor, u: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """State [b, K*C, h, w] and time u [b] -> f, g [b, C, h, w] and fields a [b, R, C, h, w]."""
        f, o, a = self.network(x, u).split([self.channels, self.channels, len(self.patterns) * self.channels], dim=1)
        return f, bounded(o, self.logit_range).exp(), 0.1 * a.unflatten(1, (len(self.patterns), self.channels))

    def forward(self, x: Tensor, u: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """See `Joint`."""
        f, g, a = self.heads(x, u)
        noise = x.new_zeros(f.shape) if noise is None else noise
        weights = torch.einsum("b c h w, r c h w -> b r", noise, self.patterns)
        increment: Tensor = f + g * noise + torch.einsum("b r c h w, b r -> b c h w", a, weights)
        return increment


class FieldVelocityTask:
    """The loss of f and g of `FieldNoise` before its score: that of the velocity of a network without fields."""

    def __init__(self, module: FieldNoise, experiment: Experiment) -> None:
        self.module: nn.Module = module
        self._heads, self._settings = module.heads, experiment

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over the windows of a batch, a scalar."""
        sample = sample_paths(self._settings, batch, batch.data)
        f, g, _ = self._heads(sample.noisy, sample.time)
        return losses.joint(f, g, sample.velocity)


def field_task(module: FieldNoise, experiment: Experiment) -> ForecastTask:
    """The loss of `FieldNoise`: of the velocity, then the score of forecasts."""
    dynamics = Dynamics(module, noise_scale=module.scale)
    return ForecastTask(module, experiment, FieldVelocityTask(module, experiment), dynamics)


class MatchingTask:
    """The loss of flow matching: from noise e to the next step d = z' - z in units of its scale, given K latents.

    Mean of (v - (d - e))^2, where v is the network's output at (1 - s) e + s d, time s and the given latents
    (arXiv 2210.02747). module: a `Joint` that sees noise. scale: [C, 1, 1], standard deviation of d.
    """

    def __init__(self, module: nn.Module, experiment: Experiment, scale: Tensor) -> None:
        self.module, self._settings, self._scale = module, experiment, scale

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over the windows of a batch, a scalar."""
        window = batch.data
        d = (window[:, -1] - window[:, -2]) / self._scale
        generator = step_generator(self._settings.train.random_seed, batch.step, 0)
        e, s = torch.randn(d.shape, generator=generator), torch.rand(len(d), generator=generator)
        v: Tensor = self.module(stack(window[:, :-1]), s, torch.lerp(e, d, s[:, None, None, None]))
        return losses.flow_mse(v, d - e)


@torch.no_grad()
def sample_matching(
    module: nn.Module, scale: Tensor, context: Tensor, horizon: int, *, members: int, calls: int, seed: int
) -> Tensor:
    """Forecast by flow matching with `calls` Euler steps a frame: context [n, K, C, h, w] -> [n, M, H, C, h, w]."""
    generator = torch.Generator().manual_seed(seed)
    known: Sequence[Tensor] = context.repeat_interleave(members, 0).unbind(1)
    made = []
    for _ in range(horizon):
        x = torch.randn(known[-1].shape, generator=generator)
        for i in range(calls):
            x = x + module(torch.cat(list(known), 1), torch.full((len(x),), i / calls), x) / calls
        made.append(known[-1] + scale * x)
        known = [*known[1:], made[-1]]
    forecast: Tensor = torch.stack(made, 1).unflatten(0, (len(context), members))
    return forecast
