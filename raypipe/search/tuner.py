"""The search of one stage: Optuna proposes trials, a scheduler decides which continue, Ray Tune runs them."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
import ray
from optuna.storages import BaseStorage
from ray import tune
from ray.tune.stopper import CombinedStopper

from raypipe.common.files import disk_is_full, write_json
from raypipe.common.interrupts import interrupts_restored
from raypipe.config import Axis, ConfigError, Experiment
from raypipe.distributed.capacity import alive
from raypipe.distributed.connection import scales_up
from raypipe.search.budget import Budget
from raypipe.search.changes import adapt_study
from raypipe.search.default import default_trial
from raypipe.search.early import EARLY, early_of
from raypipe.search.early_stop import LimitedSearcher, StopEarly
from raypipe.search.first_points import best_points, default_point, first_points
from raypipe.search.keep import forget_training
from raypipe.search.limits import StageLimit
from raypipe.search.schedulers import make_scheduler
from raypipe.search.searcher import OptunaSearcher, make_sampler
from raypipe.search.stage import Stage
from raypipe.search.study import (
    count_ended,
    drop_running,
    ended_in_order,
    importances,
    known_trials,
    open_storage,
)
from raypipe.search.trial import StageTrial
from raypipe.search.trial_log import TrialLog

DRIVER_MEMORY = 2**20
"""Memory, in bytes, reserved by a trial that only launches a TorchTrainer; its workers need the CPUs, and Tune requires
a trial to reserve some resource."""


def make_searcher(stage: Stage, storage: BaseStorage, extra: Mapping[str, Axis] | None = None) -> OptunaSearcher:
    """Make the search algorithm of a stage over its axes and the `extra` ones; the default is the first trial."""
    search, component = stage.experiment.search, stage.component
    extra = extra or {}
    axes = {**stage.settings.axes, **extra}
    known = known_trials(storage, component)
    default = default_point(stage.experiment, component) | {n: (a.choices or [None])[0] for n, a in extra.items()}
    trials = stage.settings.trials
    startup = startup_trials(trials)
    first = [default] if search.sampler == "random" else first_points(axes, default, startup, search.seed)
    if stage.warm_start is not None:
        first[1:1] = best_points(stage.warm_start, component, axes, default, max(1, trials // 4))
    conditional = any(axis.when for axis in axes.values())
    return OptunaSearcher(
        component,
        axes,
        storage,
        sampler=make_sampler(search, startup=startup, ended=count_ended(known), conditional=conditional),
        first=first[:trials],
        objectives=["objective", *search.objectives[1:]],
        ended=partial(forget_training, stage),
    )


def startup_trials(trials: int) -> int:
    """Number of trials of a stage that are proposed before the sampler fits a model, out of `trials`."""
    return min(trials, max(4, trials // 2 + 1))


def make_limit(stage: Stage, storage: BaseStorage, budget: Budget) -> StageLimit:
    """Make what ends a stage early; it knows the trials that have ended in earlier processes."""
    search, component = stage.experiment.search, stage.component
    limit = StageLimit(
        budget,
        component,
        stage.rungs,
        startup=startup_trials(stage.settings.trials),
        patience=search.patience,
        pauses=search.pauses,
        default=default_trial(component),
        ended=ended_in_order(storage, component),
    )
    early = early_of(storage, component)
    if early is not None and early.holds(search):
        limit.reason = early.reason
    return limit


class StopOnFullDisk(tune.Stopper):
    """Ends the search once a trial reports `halt`, as on a full disk. reason: why the search ended; None until then."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.reason = self.reason or result.get("halt")
        return False

    def stop_all(self) -> bool:
        return self.reason is not None


@dataclass(frozen=True)
class SearchCost:
    """What a search cost.

    trials: number of trials that ended. seconds: elapsed time. outside: fraction of slot time not spent training or
    scoring, where a slot is the place of one of the concurrent trials. failures: why trials failed, by name.
    """

    trials: int
    seconds: float
    outside: float
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def trials_a_minute(self) -> float:
        return 60 * self.trials / self.seconds


def run_search(
    stage: Stage,
    extra: Mapping[str, Axis] | None = None,
    trainable: type[tune.Trainable] = StageTrial,
    budget: Budget | None = None,
) -> SearchCost | None:
    """Run the trials of a stage that have not ended yet, and write trials.parquet and the importances of the axes.

    extra: axes in addition to those of the config. trainable: class of the trials, which reports the same results as
    StageTrial. budget: the time of the command; None for no bound. Returns None if no trial was left to run.

    Raises ConfigError if the disk is full; the running trials are kept, and --resume continues them.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it logs failed trials with their tracebacks
    try:
        return _run_trials(stage, extra or {}, trainable, budget or Budget(None))
    except OSError as error:
        if not disk_is_full(error, stage.workspace.folder):
            raise
        raise _full(f"{stage.workspace.folder}: no space left on the disk") from error


def _full(reason: str) -> ConfigError:
    return ConfigError(f"{reason}; free some space and run the same command with --resume to continue")


def _run_trials(
    stage: Stage, extra: Mapping[str, Axis], trainable: type[tune.Trainable], budget: Budget
) -> SearchCost | None:
    experiment, workspace = stage.experiment, stage.workspace
    workspace.folder.mkdir(parents=True, exist_ok=True)
    adapt_study(workspace, stage.component, experiment, experiment, extra)
    storage = open_storage(workspace.study)
    budget.begin_trials()
    limit = make_limit(stage, storage, budget)
    search = make_searcher(stage, storage, extra)
    total = stage.settings.trials
    log = TrialLog(stage, total, search.ended)
    log.catch_up(search.past())
    cost = None
    if search.ended < total and limit.start() != "never":
        halt, began = StopOnFullDisk(), time.perf_counter()
        try:
            _fit(_tuner(stage, search, trainable, total - search.ended, log, halt, limit))
        finally:
            log.close()
        if halt.reason is not None:
            raise _full(halt.reason)
        if limit.reason is None and count_ended(known_trials(storage, stage.component)) < total:
            raise KeyboardInterrupt  # Tune returns normally when it is interrupted
        seconds, places = time.perf_counter() - began, min(total - search.ended, concurrent_trials(experiment) or total)
        cost = SearchCost(log.ended, seconds, 1 - log.busy / (seconds * places), log.failures)
    study = optuna.load_study(study_name=stage.component, storage=storage)
    ended = count_ended(study.get_trials(deepcopy=False))
    early = None if ended >= total or limit.reason is None else limit.reason
    study.set_user_attr(EARLY, early and {"reason": early, "limit": getattr(experiment.search, early)})
    if early is None:
        drop_running(study, study.get_trials(), "left running by an earlier search with more trials")
    budget.end_trials(limit.enough_since)
    log.catch_up(search.past())
    write_json(workspace.importances(stage.component), importances(study))
    return cost


def _fit(tuner: tune.Tuner) -> None:
    """Run the trials. At the end Tune lists them, and fails if it has stopped one that had not started."""
    try:
        with interrupts_restored():
            tuner.fit()
    except RuntimeError as error:
        if "trial_dir_name" not in str(error):
            raise


def _tuner(
    stage: Stage,
    search: OptunaSearcher,
    trainable: type[tune.Trainable],
    trials: int,
    log: TrialLog,
    halt: StopOnFullDisk,
    limit: StageLimit,
) -> tune.Tuner:
    experiment = stage.experiment
    return tune.Tuner(
        _bind(trainable, stage),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="min",
            num_samples=trials,
            search_alg=LimitedSearcher(search, limit),
            scheduler=_scheduler(stage, search.rungs, trials),
            # Tune would count paused trials, so a scheduler that pauses trials limits the running ones itself.
            max_concurrent_trials=None if experiment.search.pauses else concurrent_trials(experiment) or None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{stage.component}-{search.ended:04d}-{time.time_ns()}",
            storage_path=str(stage.workspace.ray / "tune"),
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[log],
            stop=CombinedStopper(halt, StopEarly(limit)),
            verbose=0,
        ),
    )


def _bind(trainable: type[tune.Trainable], stage: Stage) -> type[tune.Trainable]:
    """The trainable with its stage and resources. Its name is kept, since Ray names the processes after it."""
    bound: type[tune.Trainable] = tune.with_resources(
        tune.with_parameters(trainable, stage=stage), _resources(stage.experiment)
    )
    bound.__qualname__ = trainable.__qualname__
    return bound


def _scheduler(stage: Stage, known: Mapping[str, Mapping[int, float]], trials: int) -> Any:
    search, places = stage.experiment.search, concurrent_trials(stage.experiment)
    if 0 < places != search.max_concurrent:
        places += 1  # while a trial waits for resources, Tune reuses the process of a trial that pauses
    axes = stage.settings.axes
    return make_scheduler(search, stage.rungs, known, trials, places, axes=axes, copy=stage.take_over)


def _resources(experiment: Experiment) -> tune.PlacementGroupFactory:
    search = experiment.search
    if search.workers_per_trial > 1:
        return tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}])
    gpu = {"GPU": search.gpus_per_trial} if search.gpus_per_trial else {}
    return tune.PlacementGroupFactory([{"CPU": search.cpus_per_trial, **gpu}])


def concurrent_trials(experiment: Experiment) -> int:
    """Number of concurrent trials: as many as fit on the cluster, at most search.max_concurrent; 0 for no limit.

    Without the limit, the drivers of multi-worker trials could start without CPUs left for their workers. On a cluster
    that adds nodes the number is search.max_concurrent, or 0, which leaves it to Ray Tune.
    """
    search = experiment.search
    if scales_up():
        return search.max_concurrent or 0
    gpus = search.gpus_per_trial if search.workers_per_trial == 1 else float(search.gpus_per_trial > 0)
    room = alive().room({"CPU": search.cpus_per_trial, "GPU": gpus})
    most = max(1, room // search.workers_per_trial)
    return min(most, search.max_concurrent) if search.max_concurrent else most


def check_trial_resources(experiment: Experiment) -> None:
    """Raise ConfigError if a trial needs more than the cluster has, unless it adds nodes: it would wait for ever."""
    if scales_up():
        return
    search, total = experiment.search, ray.cluster_resources()
    for name, kind, each in (
        ("cpus_per_trial", "CPU", search.cpus_per_trial),
        ("gpus_per_trial", "GPU", search.gpus_per_trial),
    ):
        if each * search.workers_per_trial > total.get(kind, 0):
            raise ConfigError(
                f"search.{name}: {search.workers_per_trial} workers of a trial with {each:g} {kind}s each do not fit "
                f"on the cluster, which has {total.get(kind, 0):g} {kind}s; lower search.{name} or "
                "search.workers_per_trial"
            )
