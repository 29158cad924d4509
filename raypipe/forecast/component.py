"""The score of a component on held-out windows. Independent of Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypipe import checkpoint
from raypipe.common.device import choose_device
from raypipe.config import Component, Evaluation, Experiment
from raypipe.forecast import scoring
from raypipe.forecast.windows import forecast_windows, training_windows
from raypipe.metrics.ensemble import Score
from raypipe.models.components import Joint
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from raypipe.sde.solvers import SOLVERS
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels


@dataclass(frozen=True)
class ComponentScore:
    """The score of a component on validation windows.

    magnitude: fitted on training windows; for a diffusion or a joint network beta, else the multiplier of the constant
    diffusion. residual_std: [C], residual standard deviation of the flow on training windows at u = 0; empty for a
    joint network. nfe_per_frame: network
    evaluations per predicted frame.
    """

    score: Score
    magnitude: float
    residual_std: tuple[float, ...]
    nfe_per_frame: int


class ComponentScorer:
    """Scores components of one stage. All of them are scored on the same windows with the same noise.

    parents: the flow, for denoisers and diffusions, and the denoiser, for diffusions (None: no denoiser).
    """

    def __init__(self, experiment: Experiment, data: ExperimentData, parents: ParentModels) -> None:
        evaluation = experiment.evaluation
        self._experiment = experiment
        self._held_out = forecast_windows(data.latents("val"), experiment, evaluation.windows, evaluation.seed)
        self._fitting = training_windows(data.latents("train"), experiment, evaluation.fit_windows, evaluation.seed + 1)
        device = choose_device()
        self._flow = None if parents.flow is None else checkpoint.load_component(parents.flow).to(device)
        self._denoiser = None if parents.denoiser is None else checkpoint.load_component(parents.denoiser).to(device)

    def __call__(
        self, component: Component, module: nn.Module | None, evaluation: Evaluation | None = None
    ) -> ComponentScore:
        """Score a component with the other components of its stage; the magnitude is fitted on training windows.

        A flow is combined with a constant diffusion, a denoiser with the parent flow and a constant diffusion, and a
        diffusion with the parent flow and denoiser; a joint network forecasts alone. module: None scores the parent
        flow without a denoiser.
        evaluation: section whose first `steps` and `solvers` are used, if the trial has its own; the windows remain
        those of the experiment.
        """
        was_training = module is not None and module.training
        if module is not None:
            module.eval()
        make, std = _DYNAMICS[component](self, module)
        evaluation = evaluation or self._experiment.evaluation
        steps, solver = evaluation.steps[0], SOLVERS[evaluation.solvers[0]]
        candidates = evaluation.betas if component in ("diffusion", "joint") else evaluation.multipliers
        fitted = scoring.fit_magnitude(make, candidates, self._fitting, evaluation, steps)
        dynamics = make(fitted.value)
        result = scoring.score(dynamics, self._held_out, evaluation, steps)
        if module is not None:
            module.train(was_training)
        return ComponentScore(result, fitted.value, tuple(std.tolist()), steps * dynamics.evaluations(solver))

    def constant(self, flow: nn.Module) -> Tensor:
        """Residual standard deviation of a flow on the training windows, [C]: the unit of the constant diffusion."""
        return scoring.residual_std(flow, self._fitting, self._experiment.sde.sigma)

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

    def _with_joint(self, module: nn.Module | None) -> tuple[Callable[[float], Dynamics], Tensor]:
        assert isinstance(module, Joint)
        return lambda beta: module.dynamics(beta=beta), torch.zeros(0)


_DYNAMICS: Mapping[
    Component, Callable[[ComponentScorer, nn.Module | None], tuple[Callable[[float], Dynamics], Tensor]]
] = {
    "flow": ComponentScorer._with_flow,
    "denoiser": ComponentScorer._with_denoiser,
    "diffusion": ComponentScorer._with_diffusion,
    "joint": ComponentScorer._with_joint,
}
"""For each stage, makes (magnitude -> dynamics) and the flow's residual standard deviation from a component."""
