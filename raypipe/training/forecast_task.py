"""Training on the score of forecasts made through the solver, after a part that is trained on the velocity."""

from einops import rearrange, repeat
from torch import Tensor, nn

from raypipe.config import SCORES, Experiment
from raypipe.data.batches import TrainBatch
from raypipe.metrics.ensemble import energy_score, fair_crps
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.rollout import integrate
from raypipe.sde.solvers import SOLVERS
from raypipe.training.loop import Task
from raypipe.training.sampling import Encoder, begin_step, noise_keys

FAIRNESS = 0.95
"""Weight of the fair score against the plain one, as in arXiv 2412.15832."""


class ForecastTask:
    """The loss of a network on windows of K + train.forecast_frames latents, [b, K+T, C, h, w].

    In the first 1 - train.score_share of the steps, it is that of `before`; from then on, the score of an ensemble
    forecast of T frames, with the first of evaluation.steps and evaluation.solvers. In turns, step by step, the two
    disturb each other (experiments/README.md). The noise of a forecast depends on the step and on the number of its
    window in the global batch, not on the number of ranks.

    dynamics: the SDE with the network in it. encode: see `begin_step`.
    """

    def __init__(
        self,
        module: nn.Module,
        experiment: Experiment,
        before: Task,
        dynamics: Dynamics,
        *,
        encode: Encoder | None = None,
    ) -> None:
        self.module = module
        self._settings = experiment
        self._before = before
        self._dynamics = dynamics
        self._encode = encode
        train = experiment.train
        self._loss = train.loss or SCORES[0]
        self._first_scored = train.velocity_steps

    def loss(self, batch: TrainBatch) -> Tensor:
        """The mean loss over this rank's windows, a scalar."""
        if batch.step < self._first_scored:
            return self._before.loss(batch)
        return self._score(begin_step(self._settings, batch, self._encode), batch)

    def _score(self, window: Tensor, batch: TrainBatch) -> Tensor:
        """Score of the forecast of each window, [b, K+T, C, h, w]."""
        settings = self._settings
        given, members = settings.model.num_input_frames, settings.train.forecast_members
        context, truth = window[:, :given], window[:, given:]
        made = integrate(
            self._dynamics,
            repeat(context, "b k c h w -> (b m) k c h w", m=members),
            noise_keys(settings, batch, window.device, members),
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
