"""An Optuna study as a search algorithm of Ray Tune, which can resume interrupted trials.

Ray's OptunaSearch supports initial points or conditional axes, but not both, and cannot resume running trials.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from raypipe.config import Axis, Search
from raypipe.search.optuna_internals import resume_trial
from raypipe.search.space import decode, suggest
from raypipe.search.study import (
    REASON,
    STEP,
    VALUES,
    count_ended,
    has_ended,
    known_trials,
    rung_scores,
    trial_name,
)

TOLD = ("nfe_per_frame", "spread_skill", "seconds")
"""User attributes of an ended trial beside STEP, from its result, for those who look at the study; see TrialResult."""
FOLDER = "folder"
"""User attribute of a trial that has begun: the folder of its model, relative to that of the search."""
METRIC = "crps_ratio"
"""Name of the objective in the study."""


@dataclass(frozen=True)
class EndedTrial:
    """A trial that has ended according to the study. config: as returned by `suggest`; scores: objectives by step."""

    config: Mapping[str, Any]
    scores: Mapping[int, float]
    error: str | None


class OptunaSearcher(Searcher):
    """Proposes trials; first resumes those that were running when an earlier process was interrupted.

    name: of the study, whose trials are in the space (see `takeover`). axes: the search space. first: encoded points
    that are tried first if the study has no trials.
    objectives: the metrics of a result that are minimized; with several, none are recorded at rungs, since Optuna
    allows this for a single objective only. ended: called with the name of each trial whose end the study has recorded.

    Attributes: ended: number of trials that ended in earlier processes. rungs: objectives recorded by earlier
    processes, by trial name and step.
    """

    def __init__(
        self,
        name: str,
        axes: Mapping[str, Axis],
        storage: BaseStorage,
        *,
        sampler: BaseSampler,
        first: Sequence[Mapping[str, Any]],
        objectives: Sequence[str] = ("objective",),
        ended: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(metric="objective", mode="min")
        self._tell_end = ended
        self._name, self._axes, self._objectives = name, axes, tuple(objectives)
        known = known_trials(storage, name)
        self._study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=sampler,
            directions=["minimize"] * len(objectives),
            load_if_exists=True,
        )
        _name_metrics(self._study, [METRIC, *objectives[1:]])
        self._interrupted = [trial for trial in known if trial.state == TrialState.RUNNING]
        self._live: dict[str, optuna.Trial] = {}
        self.ended = count_ended(known)
        self.rungs = rung_scores(known, name)
        for point in first if not known else ():
            self._study.enqueue_trial(dict(point))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """A trial config {"trial": name, "values": config fields by dotted name, "reported": recorded rungs}."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial, reported = resume_trial(self._study, frozen), sorted(frozen.intermediate_values)
        else:
            trial, reported = self._study.ask(), []
        self._live[trial_id] = trial
        if VALUES not in trial.user_attrs:
            trial.set_user_attr(VALUES, self._decoded(suggest(trial, self._axes)))  # keeps what was proposed before
            trial.set_user_attr(FOLDER, f"{self._name}/{trial_name(self._name, trial.number)}")
        return self._named(trial.number, trial.user_attrs[VALUES], reported)

    def past(self) -> list[EndedTrial]:
        """The trials that have ended."""
        return [
            EndedTrial(
                self._named(trial.number, trial.user_attrs.get(VALUES) or self._decoded(trial.params), []),
                _scores(trial),
                trial.user_attrs.get(REASON, "its process failed") if trial.state == TrialState.FAIL else None,
            )
            for trial in self._study.get_trials(deepcopy=False)
            if has_ended(trial)
        ]

    def _decoded(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {name: decode(self._axes[name], value) for name, value in params.items()}

    def _named(self, number: int, values: Mapping[str, Any], reported: list[int]) -> dict[str, Any]:
        return {"trial": trial_name(self._name, number), "values": dict(values), "reported": reported}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the objective at the rung. If a resumed trial reports a rung again, Optuna keeps the first value."""
        if math.isfinite(result["objective"]) and len(self._objectives) == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._live[trial_id].report(result["objective"], step=result["train_step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study. Samplers ignore failed trials; a trial halted by a full disk stays RUNNING."""
        trial = self._live.pop(trial_id, None)
        if trial is None or (result is not None and result.get("halt") is not None):
            return
        if error or result is None or result.get("failure") is not None:
            trial.set_user_attr(REASON, "its process failed" if result is None else result["failure"])
            self._end(trial, state=TrialState.FAIL)
            return
        self._live[trial_id] = trial
        self.on_trial_result(trial_id, result)  # Tune does not call on_trial_result with the last result
        del self._live[trial_id]
        trial.set_user_attr(STEP, result["train_step"])
        for name in TOLD:
            if result.get(name) is not None:
                trial.set_user_attr(name, result[name])
        self._end(trial, [result[name] for name in self._objectives])

    def _end(self, trial: optuna.Trial, values: Sequence[float] | None = None, state: TrialState | None = None) -> None:
        self._study.tell(trial, values, state=state)
        if self._tell_end is not None:
            self._tell_end(trial_name(self._name, trial.number))

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file, which Tune requires; the study holds all state."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing; the study holds all state."""


def _name_metrics(study: optuna.Study, names: list[str]) -> None:
    """Name the objectives of a study, for the plots and tables of optuna-dashboard."""
    if study.metric_names != names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(names)


def _scores(trial: FrozenTrial) -> Mapping[int, float]:
    """Objectives by training step; with several objectives, the first one at the last step."""
    if trial.intermediate_values or STEP not in trial.user_attrs:
        return trial.intermediate_values
    return {trial.user_attrs[STEP]: trial.values[0]}


def make_sampler(search: Search, *, startup: int, ended: int, conditional: bool) -> BaseSampler:
    """Make the Optuna sampler that `search.sampler` names.

    startup: number of random trials before the sampler fits a model. ended: number of ended trials of the study, which
    changes the seed, since the same seed would propose the first points again. conditional: whether any axis has a
    condition.
    """
    seed = search.seed + 1000 * ended
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return NSGAIISampler(population_size=max(2, startup), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "gp":
            # An axis that some trials lack, as one that was added later has values outside, is sampled by TPE.
            return GPSampler(
                seed=seed,
                independent_sampler=TPESampler(seed=seed, n_startup_trials=startup),
                n_startup_trials=startup,
                deterministic_objective=False,
                warn_independent_sampling=False,
            )
        # constant_liar treats running trials as bad, so that concurrent trials do not try the same point.
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=conditional, constant_liar=True)
