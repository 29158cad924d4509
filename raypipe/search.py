"""The search of one stage: Optuna proposes, ASHA decides who goes on, Ray Tune runs the trials."""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray
import torch
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from raypipe import checkpoint, config, records
from raypipe.cli import progress_bar
from raypipe.config import Axis, Component, Experiment
from raypipe.fit import DivergedError, Progress
from raypipe.launch import Settings, scales_up, train_jobs
from raypipe.monitor import Monitor
from raypipe.sources import Sources
from raypipe.space import decode, distribution, first_points, published_point
from raypipe.stage import Parents, Scored, Scorer, Training
from raypipe.train import ComponentJob
from raypipe.workspace import Workspace

DRIVER_MEMORY = 2**20
"""Bytes reserved by a trial that only launches a TorchTrainer: it must reserve something, and CPUs are its workers'."""


@dataclass(frozen=True)
class Stage:
    """One stage's search. choices: the flows that a diffusion may be trained on, by name of their model."""

    experiment: Experiment
    workspace: Workspace
    component: Component
    flow: str | None = None
    denoiser: str | None = None

    def configure(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial."""
        base = {"train.component": self.component, "train.steps": self.experiment.search.steps(self.component)}
        warm = {"train.warmup_steps": max(1, self.experiment.search.steps(self.component) // 20)}
        return config.replace(self.experiment, **{**base, **warm, "train.loss": None, **values})

    def parents(self, experiment: Experiment) -> Parents:
        flow = experiment.train.flow or self.flow
        return Parents(
            None if flow is None else self.workspace.run("flow", flow),
            None if self.denoiser is None else self.workspace.run("denoiser", self.denoiser),
        )

    @property
    def rungs(self) -> list[int]:
        """Training steps after which trials are scored: max / k^i, the last at the end."""
        search = self.experiment.search
        most = search.steps(self.component)
        return sorted({max(1, round(most / search.reduction_factor**i)) for i in range(search.rungs)})


class StageTrial(tune.Trainable):
    """A trial: trains to the next rung and scores itself there.

    It keeps its model under the experiment's folder after every rung, so a trial that is started again,
    by Ray or by a resumed search, goes on from there.
    """

    def setup(self, config: dict[str, Any], stage: Stage | None = None) -> None:
        assert stage is not None
        torch.set_num_threads(stage.experiment.search.cpus_per_trial)
        self._stage = stage
        self._sources = Sources(stage.experiment, stage.workspace)
        self._scorers: dict[Parents, Scorer] = {}
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process, which costs no start."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        stage = self._stage
        self._name: str = config["trial"]
        self._experiment = stage.configure(config["values"])
        self._parents = stage.parents(self._experiment)
        self._folder = stage.workspace.run(stage.component, self._name)
        self._seconds = 0.0
        self._training = Training(self._experiment, self._sources, self._parents)
        if (self._folder / "config.json").is_file():
            self._training.restore(self._folder)
            self._seconds = float(checkpoint.read_meta(self._folder).extra.get("seconds", 0.0))

    def step(self) -> dict[str, Any]:
        """To the next rung; a loss that is not a number ends the trial as failed."""
        began = time.perf_counter()
        rungs = self._stage.rungs
        target = next((rung for rung in rungs if rung > self._training.step), rungs[-1])
        try:
            self._advance(target)
        except DivergedError as error:
            return self._result(math.inf, math.nan, began, failure=str(error))
        if self._parents not in self._scorers:
            self._scorers = {self._parents: Scorer(self._experiment, self._sources, self._parents)}
        scored = self._scorers[self._parents](self._stage.component, self._training.model)
        ratio = scored.score.ratio
        if not math.isfinite(ratio.value):
            return self._result(math.inf, math.nan, began, failure="the forecast is not finite")
        records.save_score(self._folder, self._training.step, scored.score)
        result = self._result(ratio.value, ratio.se, began, scored=scored)
        self._seconds = result["seconds"]
        self._training.save(
            self._folder,
            residual_std=list(scored.residual_std),
            extra={"magnitude": scored.magnitude, "seconds": self._seconds},
        )
        return result

    def _advance(self, target: int) -> None:
        search = self._stage.experiment.search
        if search.workers_per_trial == 1:
            monitor = Monitor(self._folder, self._training.step)

            def report(progress: Progress) -> None:
                monitor.log(vars(progress))

            try:
                self._training.advance(target, report, every=max(1, target // 10))
            finally:
                monitor.close()
            return
        job = TrialJob(self._experiment, self._stage.workspace, self._name, self._parents, target)
        begun = self._folder if (self._folder / "config.json").is_file() else None
        train_jobs(
            [job],
            Settings(
                storage=self._stage.workspace.ray / "trials",
                name=f"{self._name}-{target}",
                num_workers=search.workers_per_trial,
                use_gpu=search.gpus_per_trial > 0,
                cpus_per_worker=search.cpus_per_trial,
                start_from=begun,
                show_progress=False,
            ),
        )
        self._training.restore(self._folder)

    def _result(
        self, objective: float, se: float, began: float, *, scored: Scored | None = None, failure: str | None = None
    ) -> dict[str, Any]:
        train = self._experiment.train
        return {
            "objective": objective,
            "objective_se": se,
            "train_step": self._training.step if failure is None else max(self._training.step, self._stage.rungs[-1]),
            "failure": failure,
            "trial": self._name,
            "magnitude": None if scored is None else scored.magnitude,
            "spread_skill": None if scored is None else scored.score.spread_skill,
            "objective_by_step": None if scored is None else scored.score.ratio_by_step.tolist(),
            "seconds": self._seconds + time.perf_counter() - began,
            "noise_std": train.noise_std,
            "done": failure is not None or self._training.step >= self._stage.rungs[-1],
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: `step` keeps the model under the experiment's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `setup` takes it from there."""


@dataclass(frozen=True)
class TrialJob(ComponentJob):
    """A trial's way to its next rung, under a TorchTrainer."""

    until: int = 0

    @property
    def steps(self) -> int:
        return self.until


class StudySearch(OptunaSearch):
    """OptunaSearch over a study that outlives the process: trials that were running are taken up again first."""

    def __init__(self, stage: Stage, study_storage: JournalStorage, *, extra: Mapping[str, Axis]) -> None:
        experiment = stage.experiment
        self._stage = stage
        self._ot_study: Any
        self._axes = {**experiment.search.axes(stage.component), **extra}
        known = _study(study_storage, stage.component)
        states = [trial.state for trial in known]
        self._interrupted = [trial for trial in known if trial.state == optuna.trial.TrialState.RUNNING]
        self.ended = sum(state.is_finished() for state in states)
        default = published_point(experiment, stage.component) | {n: (a.choices or [None])[0] for n, a in extra.items()}
        startup = min(
            experiment.search.trials(stage.component), max(4, experiment.search.trials(stage.component) // 2 + 1)
        )
        first = first_points(self._axes, default, startup, experiment.search.seed)
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

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """{"trial": its name, "values": config fields by dotted name}."""
        while self._interrupted:
            frozen = self._interrupted.pop(0)
            if set(frozen.params) == set(self._axes):
                self._ot_trials[trial_id] = optuna.trial.Trial(self._ot_study, frozen._trial_id)
                return self._named(frozen.number, frozen.params)
            self._ot_study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)  # cut off while being proposed
        params = super().suggest(trial_id)
        return None if params is None else self._named(self._ot_trials[trial_id].number, params)

    def _named(self, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
        values = {name: decode(self._axes[name], value) for name, value in params.items()}
        return {"trial": f"{self._stage.component}-{number:02d}", "values": values}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the rung by training step. A trial that is taken up again may report one twice; the first counts."""
        trial = self._ot_trials[trial_id]
        if math.isfinite(result["objective"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial.report(result["objective"], step=result["train_step"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A failed trial ends as FAIL, which the sampler does not learn from."""
        failed = error or result is None or result.get("failure") is not None
        super().on_trial_complete(trial_id, None if failed else result, error=failed)


def _study(storage: JournalStorage, name: str) -> list[optuna.trial.FrozenTrial]:
    if name not in optuna.get_all_study_names(storage):
        return []
    return list(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False))


class TrialLog(tune.Callback):
    """Writes trials.parquet as results come in, and shows one line of progress."""

    def __init__(self, stage: Stage, total: int, done: int) -> None:
        self._stage = stage
        self._path = stage.workspace.trials
        self._rows = records.read_rows(self._path)
        self._total, self._done = total, done
        self._bar: Any = None

    def setup(self, *args: Any, **info: Any) -> None:
        """Show the line; not sooner, for Tune pickles its callbacks, and standard error is not always picklable."""
        self._bar = progress_bar(f"search {self._stage.component}", self._total, "trial", initial=self._done)
        self._show()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One row a rung; a rung that is reported again replaces its row."""
        row = self._row(trial.config, result)
        key = (row["stage"], row["trial"], row["step"])
        self._rows = [r for r in self._rows if (r["stage"], r["trial"], r["step"]) != key] + [row]
        if result["failure"]:
            self._end(row["trial"], "failed")
        elif result["train_step"] >= self._stage.rungs[-1]:
            self._end(row["trial"], "finished")
        self._write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if not any(row["trial"] == name and row["status"] in ("finished", "failed") for row in self._rows):
            self._end(name, "stopped")
        self._bar.update(1)
        self._write()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, row = trial.config["trial"], self._row(trial.config, {})
        if not any(r["trial"] == name for r in self._rows):
            self._rows.append(row)
        self._end(name, "failed", _last_line(trial.error_file) or "the trial's process died")
        self._bar.update(1)
        self._write()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _row(self, trial_config: Mapping[str, Any], result: Mapping[str, Any]) -> records.Row:
        stage = self._stage
        experiment = stage.configure(trial_config["values"])
        score = records.read_score(
            stage.workspace.run(stage.component, trial_config["trial"]), result.get("train_step", 0)
        )
        default = records.read_score(
            stage.workspace.run(stage.component, f"{stage.component}-00"), result.get("train_step", 0)
        )
        gap = score.minus(default) if score is not None and default is not None else None
        objective = result.get("objective")
        return {
            "stage": stage.component,
            "trial": trial_config["trial"],
            "step": result.get("train_step", 0),
            "status": "running",
            "refit": False,
            "objective": objective if objective is not None and math.isfinite(objective) else None,
            "objective_se": result.get("objective_se"),
            "difference": None if gap is None else gap.value,
            "difference_se": None if gap is None else gap.se,
            "noise_std": experiment.train.noise_std,
            "loss": experiment.train.loss,
            "learning_rate": experiment.train.learning_rate,
            "time_input": experiment.model.time_input and stage.component != "denoiser",
            "flow": experiment.train.flow or stage.flow,
            "magnitude": result.get("magnitude"),
            "spread_skill": result.get("spread_skill"),
            "objective_by_step": result.get("objective_by_step"),
            "values": json.dumps(trial_config["values"]),
            "seconds": result.get("seconds"),
            "error": result.get("failure"),
        }

    def _end(self, name: str, status: str, error: str | None = None) -> None:
        for row in self._rows:
            if row["trial"] == name and row["stage"] == self._stage.component:
                row["status"] = status
                row["error"] = row["error"] or error

    def _write(self) -> None:
        records.write_rows(self._path, self._rows)
        self._show()

    def _show(self) -> None:
        best = records.last_rungs([row for row in self._rows if not row["refit"]], self._stage.component)[:1]
        if best:
            top = best[0]
            loss = f" {top.loss}" if top.loss else ""
            text = f"best {top.objective:.3f} ({top.name}: s {top.noise_std:.3g}{loss})"
            self._bar.set_postfix_str(text, refresh=sys.stderr.isatty())


def _last_line(path: str | None) -> str | None:
    if path is None or not Path(path).is_file():
        return None
    lines = [line for line in Path(path).read_text().splitlines() if line.strip()]
    return lines[-1] if lines else None


def run_search(stage: Stage, extra: Mapping[str, Axis] | None = None) -> None:
    """Run the stage's trials, those left of it if some have ended; results are in trials.parquet."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    experiment, workspace = stage.experiment, stage.workspace
    workspace.folder.mkdir(parents=True, exist_ok=True)
    search = StudySearch(stage, JournalStorage(JournalFileBackend(str(workspace.study))), extra=extra or {})
    total = experiment.search.trials(stage.component)
    if search.ended >= total:
        return
    log = TrialLog(stage, total, search.ended)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(StageTrial, stage=stage), _resources(experiment)),
        tune_config=tune.TuneConfig(
            metric="objective",
            mode="min",
            num_samples=total - search.ended,
            search_alg=search,
            scheduler=_scheduler(stage),
            max_concurrent_trials=concurrent_trials(experiment) or None,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{stage.component}-{search.ended:04d}-{time.time_ns()}",
            storage_path=str(workspace.ray / "tune"),
            failure_config=tune.FailureConfig(max_failures=2),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[log],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        log.close()
    _check_ended(stage)


def _check_ended(stage: Stage) -> None:
    """Tune returns quietly when it is interrupted; the study tells."""
    storage = JournalStorage(JournalFileBackend(str(stage.workspace.study)))
    ended = sum(trial.state.is_finished() for trial in _study(storage, stage.component))
    if ended < stage.experiment.search.trials(stage.component):
        raise KeyboardInterrupt


def _scheduler(stage: Stage) -> Any:
    rungs = stage.rungs
    if len(rungs) == 1:
        return None
    return tune.schedulers.ASHAScheduler(
        time_attr="train_step",
        grace_period=rungs[0],
        max_t=rungs[-1] + 1,  # a trial ends by itself
        reduction_factor=stage.experiment.search.reduction_factor,
    )


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
