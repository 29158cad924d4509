"""An Optuna study as a search algorithm of Ray Tune, for one that outlives the processes that write it.

Ray's own OptunaSearch takes first points or conditional axes, not both, and cannot take up trials that were running.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
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
    OTHER_AXES,
    REASON,
    STEP,
    count_ended,
    drop_running,
    known_trials,
    rung_scores,
    trial_name,
)


@dataclass(frozen=True)
class EndedTrial:
    """A trial that the study knows to be over. config: as it was suggested; scores: objectives by rung."""

    config: Mapping[str, Any]
    scores: Mapping[int, float]
    error: str | None


class OptunaSearcher(Searcher):
    """Proposes trials of the axes; those that were running when the study was left are taken up again first.

    first: points, encoded, that a study which has no trials begins with. objectives: metrics of a result that are
    minimized; only a single one is recorded at rungs. ended: trials of before that are over; rungs: all objectives of
    before, by trial name and step.
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
    ) -> None:
        super().__init__(metric="objective", mode="min")
        self._name, self._axes, self._objectives = name, axes, tuple(objectives)
        known = known_trials(storage, name)
        self._study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=sampler,
            directions=["minimize"] * len(objectives),
            load_if_exists=True,
        )
        running = [trial for trial in known if trial.state == TrialState.RUNNING]
        self._interrupted = [trial for trial in running if trial.params.keys() <= axes.keys()]
        self._live: dict[str, optuna.Trial] = {}
        self.ended = count_ended(known)
        self.rungs = rung_scores(known, name)
        drop_running(self._study, [trial for trial in running if trial not in self._interrupted], OTHER_AXES)
        for point in first if not known else ():
            self._study.enqueue_trial(dict(point))

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """{"trial": its name, "values": config fields by dotted name, "reported": steps of the rungs on record}."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial, reported = resume_trial(self._study, frozen), sorted(frozen.intermediate_values)
        else:
            trial, reported = self._study.ask(), []
        self._live[trial_id] = trial
        return self._named(trial.number, suggest(trial, self._axes), reported)  # what it has already stays

    def past(self) -> list[EndedTrial]:
        """The trials that are over by now."""
        return [
            EndedTrial(
                self._named(trial.number, trial.params, []),
                _scores(trial),
                trial.user_attrs.get(REASON, "its process failed") if trial.state == TrialState.FAIL else None,
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.is_finished() and trial.user_attrs.get(REASON) != OTHER_AXES
        ]

    def _named(self, number: int, params: Mapping[str, Any], reported: list[int]) -> dict[str, Any]:
        values = {name: decode(self._axes[name], value) for name, value in params.items()}
        return {"trial": trial_name(self._name, number), "values": values, "reported": reported}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the rung by training step. A trial that is taken up again may report one twice; the first counts."""
        if math.isfinite(result["objective"]) and len(self._objectives) == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._live[trial_id].report(result["objective"], step=result["train_step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A failed trial ends as FAIL, which the sampler does not learn from; one that a full disk cut off goes on."""
        trial = self._live.pop(trial_id, None)
        if trial is None or (result is not None and result.get("halt") is not None):
            return
        if error or result is None or result.get("failure") is not None:
            trial.set_user_attr(REASON, "its process failed" if result is None else result["failure"])
            self._study.tell(trial, state=TrialState.FAIL)
            return
        self._live[trial_id] = trial
        self.on_trial_result(trial_id, result)  # Tune has not told the result that ends a trial
        del self._live[trial_id]
        trial.set_user_attr(STEP, result["train_step"])
        self._study.tell(trial, [result[name] for name in self._objectives])

    def save(self, checkpoint_path: str) -> None:
        """Nothing of its own: the study keeps all. Tune wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on by its study."""


def _scores(trial: FrozenTrial) -> Mapping[int, float]:
    """Objectives by step; of a study with two, the first at the end."""
    if trial.intermediate_values or STEP not in trial.user_attrs:
        return trial.intermediate_values
    return {trial.user_attrs[STEP]: trial.values[0]}


def make_sampler(search: Search, *, startup: int, ended: int, conditional: bool) -> BaseSampler:
    """Optuna's sampler that `search.sampler` names.

    startup: trials before a model is fitted. ended: trials of before; the same seed on a study with results
    would propose its first points again. conditional: whether some axes have conditions.
    """
    seed = search.seed + 1000 * ended
    if search.sampler == "random":
        return RandomSampler(seed=seed)
    if search.sampler == "nsga2":
        return NSGAIISampler(population_size=max(2, startup), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if search.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False)
        # Trials that are running count as bad ones, so that no two workers try the same.
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=conditional, constant_liar=True)
