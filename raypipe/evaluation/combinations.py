"""Combinations of flow, denoiser and diffusion, or joint networks: their enumeration and their scores."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from raypipe import checkpoint
from raypipe.common.device import choose_device
from raypipe.config import Component, Experiment, Solver
from raypipe.data.frames import to_float
from raypipe.evaluation.perceptual.scores import PerceptualScorer, RealClips
from raypipe.forecast import scoring
from raypipe.forecast.decoding import PLAIN, LastFrame, decode, decodings, frames_of
from raypipe.forecast.manifest import CONSTANT, JOINT
from raypipe.forecast.windows import climatology, forecast_windows, training_windows, true_frames
from raypipe.metrics import ensemble
from raypipe.metrics.ensemble import Score
from raypipe.metrics.fields import FieldScores, score_fields
from raypipe.metrics.pixels import FrameErrors, Pixels, WindowScore, best_of, frame_errors, pixels_of, score_frames
from raypipe.models.components import Joint
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from raypipe.sde.solvers import SOLVERS
from raypipe.search.finalists import NO_DENOISER, Finalist
from raypipe.training.monitor import training_seconds
from raypipe.workspace.dataset import ExperimentData

HeldOutSplit = Literal["val", "test"]
"""Splits on which combinations are scored."""
CHOICE_WINDOWS = 32
"""Number of windows on which the decoding of a combination is chosen; its scores are then of all windows."""
Baseline = Literal["persistence", "climatology", "flow", "published", "reconstruction", "flow_matching", "foellmer"]
"""Names of the baselines in combinations.parquet. `published` is the default, see `default_combination`. The last two
are the rivals of the config.

`reconstruction` is no rival but a bound: the true latents, so its scores in pixels are the best that forecasts in
latents can be expected to reach with this autoencoder.
"""


@dataclass(frozen=True)
class Combination:
    """Components, and the settings with which they forecast; or a baseline.

    flow, denoiser, diffusion: names of trials; None: no such component; diffusion `CONSTANT`: a constant diffusion;
    `JOINT`: the flow is a joint network, which has its own noise.
    *_model: names of the model folders in the folder of the stage. alpha, beta: see `raypipe.sde`; with a constant
    diffusion, beta is its multiplier; None: not fitted yet. steps: integration steps per frame. residual_std: [C],
    residual standard deviation of the flow, the unit of the constant diffusion. baseline: None for candidates.
    more_models: trainings of the joint network with other seeds, with which `flow_model` takes turns. decoding: how
    latents become frames, see `raypipe.forecast.decoding`; None: not chosen yet.
    """

    flow: str | None
    denoiser: str | None
    diffusion: str | None
    flow_model: str | None = None
    denoiser_model: str | None = None
    diffusion_model: str | None = None
    alpha: float = 1.0
    beta: float | None = None
    steps: int = 1
    solver: Solver = "euler_maruyama"
    residual_std: tuple[float, ...] = ()
    baseline: Baseline | None = None
    more_models: tuple[str, ...] = ()
    decoding: str | None = None

    @property
    def flow_component(self) -> Component:
        """The component that serves as the flow."""
        return "joint" if self.diffusion == JOINT else "flow"

    @property
    def models(self) -> list[tuple[Component, str]]:
        """Component and name of each of its models."""
        flows = (self.flow_model, *self.more_models)
        found: list[tuple[Component, str | None]] = [(self.flow_component, flow) for flow in flows]
        found += [("denoiser", self.denoiser_model), ("diffusion", self.diffusion_model)]
        return [(component, name) for component, name in found if name is not None]

    @property
    def key(self) -> str:
        """Unique within an experiment; the same before and after beta is fitted and the decoding is chosen."""
        models = "+".join([str(self.flow_model), *self.more_models])
        parts = (self.baseline, models, self.denoiser_model, self.diffusion_model, self.diffusion)
        return "/".join(str(part) for part in (*parts, f"{self.alpha:g}", self.steps, self.solver))


def combinations(
    flows: Sequence[Finalist],
    denoisers: Sequence[Finalist],
    diffusions: Sequence[Finalist],
    joints: Sequence[Finalist],
    experiment: Experiment,
    top_k: int,
) -> list[Combination]:
    """All candidates: the product of the top k flows, denoisers and diffusions, with all settings to evaluate.

    The top k joint networks take the place of a flow and its diffusion.

    The settings are evaluation.alphas, evaluation.solvers and evaluation.steps. "No denoiser" is always one of the k
    denoisers; for k = 1 the best denoiser is added. A flow is combined with the constant diffusion and with the
    diffusions that were trained on its residuals. Only finalists with `handed_on` are used.
    """
    evaluation = experiment.evaluation
    chosen_flows = [f for f in flows if f.handed_on][:top_k]
    chosen_denoisers = [None, *[d for d in denoisers if d.handed_on and d.trial != NO_DENOISER][: max(1, top_k - 1)]]
    found: list[Combination] = []

    def add(f: Finalist, d: Finalist | None, g: Finalist | str, more: tuple[str, ...] = ()) -> None:
        for alpha in evaluation.alphas if d else evaluation.alphas[:1]:
            made = [_combination(f, d, g, alpha, steps) for steps in evaluation.steps]
            found.extend(replace(c, solver=solver, more_models=more) for solver in evaluation.solvers for c in made)

    for f in chosen_flows:
        own = [g for g in diffusions if g.handed_on and g.flow == f.model][:top_k]
        for d in chosen_denoisers:
            add(f, d, CONSTANT)
            for g in own:
                add(f, d, g)
    for joint in [j for j in joints if j.handed_on][:top_k]:
        for d in chosen_denoisers:
            add(joint, d, JOINT)
            if evaluation.models == "all" and len(joint.models) > 1:
                add(joint, d, JOINT, joint.models[1:])
    return found


def _combination(f: Finalist, d: Finalist | None, g: Finalist | str, alpha: float, steps: int) -> Combination:
    """g: a diffusion, or `CONSTANT` or `JOINT`."""
    return Combination(
        flow=f.trial,
        denoiser=d.trial if d else None,
        diffusion=g if isinstance(g, str) else g.trial,
        flow_model=f.model,
        denoiser_model=d.model if d else None,
        diffusion_model=None if isinstance(g, str) else g.model,
        alpha=alpha,
        steps=steps,
        residual_std=f.residual_std,
    )


def default_combination(
    flows: Sequence[Finalist], denoisers: Sequence[Finalist], diffusions: Sequence[Finalist], steps: int
) -> Combination:
    """The default, a baseline: s = 0.1, nll, no time input, a diffusion trained by regression, alpha = beta = 1."""
    f, d, g = (next(x for x in stage if x.published) for stage in (flows, denoisers, diffusions))
    return replace(_combination(f, d, g, 1.0, steps), beta=1.0, baseline="published")


@dataclass(frozen=True)
class Result:
    """The score of a combination on a split. fields: of whole latents.

    nfe_per_frame: network evaluations per predicted frame. seconds_per_frame: time per predicted frame of one member,
    forecast in batches, without decoding. training_seconds: time of the training steps of all its networks; None if
    there are none, or without their logs. pixels: None if the forecasts were not decoded. perceptual: see
    `PerceptualScorer.scores`.
    """

    combination: Combination
    score: Score
    fields: FieldScores
    nfe_per_frame: int
    seconds_per_frame: float
    training_seconds: float | None
    pixels: Pixels | None = None
    perceptual: Mapping[str, float] = field(default_factory=dict)


class CombinationScorer:
    """Scores combinations on `count` fixed windows of a split: in latent space and, if requested, on decoded frames."""

    def __init__(self, data: ExperimentData, split: HeldOutSplit, count: int) -> None:
        experiment = data.experiment
        self._data = data
        self._split: HeldOutSplit = split
        self._held_out = forecast_windows(data.latents(split), experiment, count, experiment.evaluation.seed)

    def fit(self, combination: Combination) -> Combination:
        """The combination with the beta (or multiplier) that scores best on training windows.

        Returned unchanged if beta is already known or if there is no diffusion.
        """
        if combination.beta is not None or combination.diffusion is None:
            return combination
        experiment = self._data.experiment
        evaluation = experiment.evaluation
        fitting = training_windows(self._data.latents("train"), experiment, evaluation.fit_windows, evaluation.seed + 1)
        made = self.dynamics(replace(combination, beta=1.0))
        candidates = evaluation.multipliers if combination.diffusion == CONSTANT else evaluation.betas
        fitted = scoring.fit_magnitude(
            lambda beta: [replace(one, beta=beta) for one in made],
            candidates,
            fitting,
            evaluation,
            combination.steps,
            combination.solver,
        )
        return replace(combination, beta=fitted.value)

    def score(self, combination: Combination, *, decode: bool, real: RealClips | None = None) -> Result:
        """The score of the combination on the held-out windows. decode: also score decoded frames.

        real: features of the true clips, for perceptual scores of decoded frames; None: no such scores.
        """
        began = time.perf_counter()
        members, nfe = self._forecast(combination)
        frames_made = len(members) * members.shape[1] * members.shape[2]
        seconds = (time.perf_counter() - began) / frames_made if nfe else 0.0
        truth, last = self._held_out.truth, self._held_out.last
        result = ensemble.score(members, truth, last)
        fields = score_fields([distinct(forecasts) for forecasts in members], truth, last)
        seen = None if real is None else PerceptualScorer(self._data, self._split, self._held_out, real)
        decoding, pixels = self._pixels(combination, members, seen) if decode else (combination.decoding, None)
        perceptual = seen.scores() if decode and seen is not None else {}
        done = replace(combination, decoding=decoding)
        trained = training_seconds([self._data.workspace.run(*model) for model in combination.models])
        return Result(done, result, fields, nfe * combination.steps, seconds, trained, pixels, perceptual)

    def _forecast(self, combination: Combination) -> tuple[Tensor, int]:
        """The ensemble forecast in latent space, [n, M, H, C, h, w], and network evaluations per integration step."""
        evaluation, held_out = self._data.experiment.evaluation, self._held_out
        if combination.baseline == "persistence":
            horizon = held_out.truth.shape[1]
            return held_out.last[:, None, None].expand(-1, 1, horizon, -1, -1, -1), 0
        if combination.baseline == "reconstruction":
            return held_out.truth[:, None], 0
        if combination.baseline == "climatology":
            train = self._data.latents("train")
            return climatology(train, held_out, evaluation.climatology_members, evaluation.seed), 0
        dynamics = self.dynamics(combination)
        members = 1 if not dynamics[0].stochastic else evaluation.test_members if self._split == "test" else None
        made = scoring.forecast(dynamics, held_out, evaluation, combination.steps, members, combination.solver)
        return made, dynamics[0].evaluations(SOLVERS[combination.solver])

    def dynamics(self, combination: Combination) -> list[Dynamics]:
        """The SDE of a combination, with its models loaded, once for each training. A beta of None is taken as 1."""
        names = (combination.flow_model, *combination.more_models)
        return [self._dynamics(combination, name) for name in names]

    def _dynamics(self, combination: Combination, flow_model: str | None) -> Dynamics:
        beta = 1.0 if combination.beta is None else combination.beta
        flow = self._load(combination.flow_component, flow_model)
        denoiser = self._load("denoiser", combination.denoiser_model)
        assert flow is not None
        if isinstance(flow, Joint):
            return flow.dynamics(denoiser, alpha=combination.alpha, beta=beta)
        diffusion: nn.Module | ConstantDiffusion | None = self._load("diffusion", combination.diffusion_model)
        if combination.diffusion == CONSTANT:
            diffusion = ConstantDiffusion(torch.tensor(combination.residual_std))
        return Dynamics(flow, denoiser, diffusion, combination.alpha, beta)

    def _load(self, component: Component, model: str | None) -> nn.Module | None:
        if model is None:
            return None
        return checkpoint.load_component(self._data.workspace.run(component, model)).to(choose_device())

    def _pixels(
        self, combination: Combination, members: Tensor, seen: PerceptualScorer | None
    ) -> tuple[str | None, Pixels]:
        """The best decoding of the forecasts (None for persistence) and its scores.

        Of the decodings that the config allows, unless the combination has one. Decodes window by window to save
        memory. members: latents [n, M, H, C, h, w]. seen: is given the frames of each window too.
        """
        autoencoder = checkpoint.load_autoencoder(self._data.workspace.autoencoder).to(choose_device())
        truth, last = (to_float(frames) for frames in true_frames(self._data, self._split, self._held_out))
        bodies = self._data.experiment.dataset.is_demo

        def score(window: int, shown: Tensor) -> WindowScore:
            if seen is not None:
                seen.add(window, shown)
            return score_frames(shown, truth[window], last[window])

        if combination.baseline == "persistence":
            scored = [score(i, still[None, None]) for i, still in enumerate(last)]
            return None, pixels_of(scored, bodies=bodies)
        names = decodings(self._data.experiment.evaluation.decoding)
        if combination.baseline == "climatology":
            names = (PLAIN,)  # its frames do not follow the last given one
        elif combination.decoding is not None:
            names = (combination.decoding,)
        before = LastFrame(last, decode(autoencoder, self._held_out.last))

        def frames(decoding: str, window: int, decoded: Tensor) -> Tensor:
            return frames_of(decoding, decoded, LastFrame(last[window], before.decoded[window]))

        def errors(window: int) -> dict[str, FrameErrors]:
            decoded = decode(autoencoder, members[window])
            return {d: frame_errors(frames(d, window, decoded), truth[window], last[window]) for d in names}

        chosen = names[0] if len(names) == 1 else best_of([errors(i) for i in spread(len(members), CHOICE_WINDOWS)])
        decoded = (decode(autoencoder, distinct(forecasts)) for forecasts in members)
        scored = [score(i, frames(chosen, i, made)) for i, made in enumerate(decoded)]
        return chosen, pixels_of(scored, bodies=bodies)


def distinct(latents: Tensor) -> Tensor:
    """[M, 1, C, h, w] of latents [M, T, C, h, w] that are one frame expanded to T frames (stride 0), else all of them.

    For climatology, whose members repeat one frame each.
    """
    return latents[:, :1] if latents.shape[1] > 1 and latents.stride(1) == 0 else latents


def spread(count: int, most: int) -> range:
    """At most `most` of `count` numbers, evenly spread."""
    return range(0, count, -(-count // most))
