"""Training on the score of forecasts made through the solver, after a part that is trained on the velocity."""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from raypipe.common.seeds import step_seed
from raypipe.config import Experiment
from raypipe.data.batches import TrainBatch
from raypipe.metrics.ensemble import energy_score, fair_crps
from raypipe.sde import losses
from raypipe.sde.brownian import brownian_end, forecast_keys
from raypipe.sde.dynamics import Dynamics, mixture
from raypipe.sde.path import stack
from raypipe.sde.rollout import integrate
from raypipe.sde.solvers import SOLVERS
from raypipe.training.sampling import Encoder, begin_step, sample_paths

FAIRNESS = 0.95
"""Weight of the fair score against the plain one, as in arXiv 2412.15832."""


class ForecastTask:
    """The loss of a joint network or a diffusion on windows of K + train.forecast_frames latents, [b, K+T, C, h, w].

    In the first 1 - train.score_share of the steps, it is the loss of the velocity (`raypipe.sde.losses.joint`, for a
    diffusion `diffusion_nll`); from then on, the score of an ensemble forecast of T frames, with the first of
    evaluation.steps and evaluation.solvers. In turns, step by step, the two disturb each other
    (experiments/README.md). The noise of a forecast depends on the step and on the number of its window in the global
    batch, not on the number of ranks.

    flow: the frozen flow of a diffusion. noise_scale: `Joint.scale` of a network that sees the noise. encode: see
    `begin_step`.
    """

    def __init__(
        self,
        module: nn.Module,
        experiment: Experiment,
        *,
        flow: nn.Module | None = None,
        noise_scale: Tensor | None = None,
        encode: Encoder | None = None,
    ) -> None:
        self.module = module
        self._settings = experiment
        self._flow = flow
        self._encode = encode
        train = experiment.train
        assert (train.component == "diffusion") == (flow is not None)
        self._loss = train.loss or "crps_energy"
        self._first_scored = round((1 - train.score_share) * train.steps)
        diffusion = module if noise_scale is None else None
        self._dynamics = Dynamics(flow or module, diffusion=diffusion, noise_scale=noise_scale)

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's windows, a scalar."""
        window = begin_step(self._settings, batch, self._encode)
        if batch.step < self._first_scored:
            return self._of_velocity(window[:, : self._settings.model.num_input_frames + 1], batch)
        return self._of_forecast(window, batch)

    def _of_velocity(self, window: Tensor, batch: TrainBatch) -> Tensor:
        """Loss of the velocity at a point on the path of each window, [b, K+1, C, h, w]."""
        sample = sample_paths(self._settings, batch, window)
        if self._flow is not None:
            with torch.no_grad():
                residual = sample.velocity - self._flow(sample.noisy, sample.time)
            return losses.diffusion_nll(self.module(sample.noisy, sample.time).float(), residual)
        if self._dynamics.noise_scale is None:
            f, g = self.module(sample.noisy, sample.time).float().chunk(2, dim=1)
            return losses.joint(f, g, sample.velocity)
        noise = self._dynamics.noise_scale * brownian_end(self._keys(batch, window, 1), 0, window.shape[2:])
        u, start = sample.time[:, None, None, None], stack(window[:, :-1]) + sample.noise
        seen = mixture(noise, u * sample.velocity, u)
        scale = self._dynamics.noise_scale
        return losses.flow_mse(self.module(start, sample.time, seen).float() / scale, sample.velocity / scale)

    def _of_forecast(self, window: Tensor, batch: TrainBatch) -> Tensor:
        """Score of the forecast of each window, [b, K+T, C, h, w]."""
        settings = self._settings
        given, members = settings.model.num_input_frames, settings.train.forecast_members
        context, truth = window[:, :given], window[:, given:]
        made = integrate(
            self._dynamics,
            repeat(context, "b k c h w -> (b m) k c h w", m=members),
            self._keys(batch, window, members),
            range(truth.shape[1]),
            SOLVERS[settings.evaluation.solvers[0]].step,
            settings.evaluation.steps[0],
        )
        ensemble = rearrange(made.float(), "(b m) t c h w -> (b t) m c h w", m=members)
        target = rearrange(truth, "b t c h w -> (b t) c h w")
        total = ensemble.new_zeros(())
        if "crps" in self._loss:
            total = total + fair_crps(ensemble, target, FAIRNESS).mean()
        if "energy" in self._loss:
            total = total + energy_score(ensemble, target, FAIRNESS).mean()
        return total

    def _keys(self, batch: TrainBatch, window: Tensor, members: int) -> Tensor:
        """Keys of the noise of each member of each window, [b * members]."""
        numbers = torch.arange(batch.offset, batch.offset + len(window), device=window.device)
        seed = step_seed(self._settings.train.random_seed, batch.step, 1)
        member = torch.arange(members, device=window.device).repeat(len(window))
        return forecast_keys(seed, numbers.repeat_interleave(members), member)
