"""The search of one stage: Optuna proposes, ASHA decides who goes on, Ray Tune runs the trials."""

import logging
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import ray
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from raypipe.config import Axis, ConfigError, Experiment
from raypipe.files import disk_is_full
from raypipe.launch import scales_up
from raypipe.schedulers import make_scheduler
from raypipe.space import decode, distribution, first_points, published_point
from raypipe.study import (
    CUT_OFF,
    REASON,
    count_ended,
    drop_running,
    importances,
    known_trials,
    open_storage,
    rung_scores,
    trial_name,
)
from raypipe.trial import Stage, StageTrial
from raypipe.trial_log import Past, TrialLog
from raypipe.warm_start import best_points
from raypipe.workspace import write_json

DRIVER_MEMORY = 2**20
"""Bytes reserved by a trial that only launches a TorchTrainer: it must reserve something, and CPUs are its workers'."""


class StudySearch(OptunaSearch):
    """OptunaSearch over a study that outlives the process: trials that were running are taken up again first."""

    def __init__(self, stage: Stage, study_storage: JournalStorage, *, extra: Mapping[str, Axis]) -> None:
        experiment = stage.experiment
        self._stage = stage
        self._ot_study: Any
        self._axes = {**experiment.search.axes(stage.component), **extra}
        known = known_trials(study_storage, stage.component)
        running = [trial for trial in known if trial.state == TrialState.RUNNING]
        self._interrupted = [trial for trial in running if set(trial.params) == set(self._axes)]
        self.ended = count_ended(known)
        self.rungs = rung_scores(known, stage.component)
        default = published_point(experiment, stage.component) | {n: (a.choices or [None])[0] for n, a in extra.items()}
        startup = min(
            experiment.search.trials(stage.component), max(4, experiment.search.trials(stage.component) // 2 + 1)
        )
        first = first_points(self._axes, default, startup, experiment.search.seed)
        if stage.warm_start is not None and not known:
            count = max(1, experiment.search.trials(stage.component) // 4)
            first[1:1] = best_points(stage.warm_start, stage.component, self._axes, default, count)
        super().__init__(
            {name: distribution(name, axis) for name, axis in self._axes.items()},
            metric="objective",
            mode="min",
            points_to_evaluate=[] if known else first,
            sampler=optuna.samplers.TPESampler(
                # The same seed on a study with results would propose its first points again.
                seed=experiment.search.seed + 1000 * self.ended,
                n_startup_trials=startup,
                multivariate=True,
                constant_liar=True,
            ),
            study_name=stage.component,
            storage=study_storage,
        )
        drop_running(self._ot_study, [trial for trial in running if trial not in self._interrupted], CUT_OFF)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """{"trial": its name, "values": config fields by dotted name, "reported": steps of the rungs on record}."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            self._ot_trials[trial_id] = optuna.trial.Trial(self._ot_study, frozen._trial_id)
            return self._named(frozen.number, frozen.params, sorted(frozen.intermediate_values))
        params = super().suggest(trial_id)
        return None if params is None else self._named(self._ot_trials[trial_id].number, params, [])

    def past(self) -> list[Past]:
        """The trials that are over by now."""
        return [
            Past(
                self._named(trial.number, trial.params, []),
                trial.intermediate_values,
                trial.user_attrs.get(REASON, "its process failed") if trial.state == TrialState.FAIL else None,
            )
            for trial in self._ot_study.get_trials(deepcopy=False)
            if trial.state.is_finished() and trial.user_attrs.get(REASON) != CUT_OFF
        ]

    def _named(self, number: int, params: Mapping[str, Any], reported: list[int]) -> dict[str, Any]:
        values = {name: decode(self._axes[name], value) for name, value in params.items()}
        return {"trial": trial_name(self._stage.component, number), "values": values, "reported": reported}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the rung by training step. A trial that is taken up again may report one twice; the first counts."""
        trial = self._ot_trials[trial_id]
        if math.isfinite(result["objective"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial.report(result["objective"], step=result["train_step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A failed trial ends as FAIL, which the sampler does not learn from; one that a full disk cut off goes on."""
        if result is not None and result.get("halt") is not None:
            return
        failed = error or result is None or result.get("failure") is not None
        if failed:
            reason = "its process failed" if result is None else result["failure"]
            self._ot_trials[trial_id].set_user_attr(REASON, reason)
        else:
            assert result is not None
            self.on_trial_result(trial_id, result)  # Tune has not told the result that ends a trial
        super().on_trial_complete(trial_id, None if failed else result, error=failed)


class Halt(tune.Stopper):
    """Ends a search whose trials cannot be kept any more. reason: why, once it is so."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.reason = self.reason or result.get("halt")
        return False

    def stop_all(self) -> bool:
        return self.reason is not None


@dataclass(frozen=True)
class Economy:
    """What a search took: trials that ended, seconds on the clock, and the share of them outside the trials.

    outside: of the time of all places for trials, what went by without one training or scoring.
    """

    trials: int
    seconds: float
    outside: float

    @property
    def trials_a_minute(self) -> float:
        return 60 * self.trials / self.seconds


def run_search(
    stage: Stage, extra: Mapping[str, Axis] | None = None, trainable: type[tune.Trainable] = StageTrial
) -> Economy | None:
    """Run the stage's trials, those left of it if some have ended; results are in trials.parquet.

    trainable: what a trial is; it reports as StageTrial does. Returns None if no trial was left.

    Raises ConfigError if the disk is full: what was going on stands, and --resume takes it up.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    try:
        return _run_trials(stage, extra or {}, trainable)
    except OSError as error:
        if not disk_is_full(error, stage.workspace.folder):
            raise
        raise _full(f"{stage.workspace.folder}: no space left on the disk") from error


def _full(reason: str) -> ConfigError:
    return ConfigError(f"{reason}; free some, then the same command with --resume goes on")


def _run_trials(stage: Stage, extra: Mapping[str, Axis], trainable: type[tune.Trainable]) -> Economy | None:
    experiment, workspace = stage.experiment, stage.workspace
    workspace.folder.mkdir(parents=True, exist_ok=True)
    storage = open_storage(workspace.study)
    search = StudySearch(stage, storage, extra=extra)
    total = experiment.search.trials(stage.component)
    log = TrialLog(stage, total, search.ended)
    log.catch_up(search.past())
    economy = None
    if search.ended < total:
        halt, began = Halt(), time.perf_counter()
        try:
            _tuner(stage, search, trainable, total - search.ended, log, halt).fit()
        finally:
            log.close()
        if halt.reason is not None:
            raise _full(halt.reason)
        if count_ended(known_trials(storage, stage.component)) < total:
            raise KeyboardInterrupt  # Tune returns quietly when it is interrupted; the study tells
        seconds, places = time.perf_counter() - began, min(total - search.ended, concurrent_trials(experiment) or total)
        economy = Economy(log.ended, seconds, 1 - log.busy / (seconds * places))
    study = optuna.load_study(study_name=stage.component, storage=storage)
    drop_running(study, study.get_trials(), "left running by a search that asked for more trials")
    log.catch_up(search.past())
    write_json(workspace.importances(stage.component), importances(study))
    return economy


def _tuner(
    stage: Stage, search: StudySearch, trainable: type[tune.Trainable], trials: int, log: TrialLog, halt: Halt
) -> tune.Tuner:
    experiment = stage.experiment
    return tune.Tuner(
        tune.with_resources(tune.with_parameters(trainable, stage=stage), _resources(experiment)),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="min",
            num_samples=trials,
            search_alg=search,
            scheduler=_scheduler(stage, search.rungs, trials),
            # Tune counts trials that pause among these; their scheduler counts those that run.
            max_concurrent_trials=None if experiment.search.pauses else concurrent_trials(experiment) or None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{stage.component}-{search.ended:04d}-{time.time_ns()}",
            storage_path=str(stage.workspace.ray / "tune"),
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[log],
            stop=halt,
            verbose=0,
        ),
    )


def _scheduler(stage: Stage, known: Mapping[str, Mapping[int, float]], trials: int) -> Any:
    search, places = stage.experiment.search, concurrent_trials(stage.experiment)
    if 0 < places != search.max_concurrent:
        places += 1  # one may wait for resources, or Tune ends the process of a trial that pauses, and starts another
    axes = search.axes(stage.component)
    return make_scheduler(search, stage.rungs, known, trials, places, axes=axes, copy=stage.take_over)


def _resources(experiment: Experiment) -> tune.PlacementGroupFactory:
    search = experiment.search
    if search.workers_per_trial > 1:
        return tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}])
    gpu = {"GPU": search.gpus_per_trial} if search.gpus_per_trial else {}
    return tune.PlacementGroupFactory([{"CPU": search.cpus_per_trial, **gpu}])


def concurrent_trials(experiment: Experiment) -> int:
    """As many trials as the cluster holds at once, so that none waits for workers that another's driver blocks.

    A cluster that scales up is asked for all it may need: 0 leaves the number to Ray Tune.
    """
    search, total = experiment.search, ray.cluster_resources()
    if scales_up():
        return search.max_concurrent or 0
    fits = [math.floor(total.get("CPU", 1) / (search.cpus_per_trial * search.workers_per_trial))]
    if search.gpus_per_trial:
        fits.append(math.floor(total.get("GPU", 0) / (search.gpus_per_trial * search.workers_per_trial)))
    most: int = max(1, min(fits))
    return min(most, search.max_concurrent) if search.max_concurrent else most
