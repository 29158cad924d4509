"""A trial of a search: one configuration, trained from rung to rung and scored at each rung. Independent of Ray."""

import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe import checkpoint
from raypipe.common.files import disk_is_full, standing
from raypipe.forecast.component import ComponentScore, ComponentScorer
from raypipe.search import records
from raypipe.search.stage import Stage
from raypipe.training.component import ComponentTraining, component_label
from raypipe.training.loop import DivergedError, Progress
from raypipe.training.monitor import Monitor
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels


@dataclass(frozen=True)
class TrialResult:
    """What a trial reports at a rung.

    objective: the score, infinite if the trial failed or was halted. train_step: training steps so far; for a failed
    trial at least those of the last rung, so that schedulers treat it as ended. values: the configuration, as JSON.
    magnitude: the fitted multiplier or beta. spread_skill: of the scored forecasts. failure: why the trial failed.
    halt: why the whole search must stop. exploited: the trial whose weights this one took over since the previous rung.
    trained: training steps since the previous report, in `training` seconds; scoring: seconds of the score; 0 if the
    score was saved before.
    """

    objective: float
    train_step: int
    trial: str
    values: str
    noise_std: float
    seconds: float
    done: bool
    magnitude: float | None = None
    nfe_per_frame: int | None = None
    spread_skill: float | None = None
    failure: str | None = None
    halt: str | None = None
    exploited: str | None = None
    trained: int = 0
    training: float = 0.0
    scoring: float = 0.0


class TrialRun:
    """A trial in training, resumed from its model folder if that exists.

    The model is saved every `train.checkpoint_every` steps and at every rung, so a trial that is started again (by
    Ray, after a pause, or by a resumed search) continues from there. The folder may hold a copy of another trial
    (`Stage.take_over`); the copy's values then replace the proposed ones.

    reported: the steps of the rungs that the study has on record for this trial.
    """

    def __init__(
        self, stage: Stage, data: ExperimentData, name: str, proposed: Mapping[str, Any], reported: Collection[int]
    ) -> None:
        self.stage, self.name = stage, name
        self.folder = stage.workspace.run(stage.component, name)
        saved = checkpoint.read_meta(self.folder).extra if model_exists(self.folder) else {}
        self._inherited = {key: saved[key] for key in ("values", "exploited") if key in saved}
        self._values: dict[str, Any] = dict(saved.get("values", proposed))
        self.experiment = stage.configure(self._values)
        self.parents = stage.parents(self.experiment)
        self.training = ComponentTraining(self.experiment, data, self.parents)
        self._seconds = float(saved.get("seconds", 0.0))
        self._began = time.perf_counter()
        self._monitor: Monitor | None = None
        self._unreported_rung: int | None = None
        if model_exists(self.folder):
            self.training.restore(self.folder)
            self._unreported_rung = self._find_unreported({*reported, saved.get("exploited", {}).get("step")})

    def _find_unreported(self, reported: Collection[int | None]) -> int | None:
        """The rung at the current step, if the search may have been killed before it recorded the score; else None.

        The last rung is always reported: only its report ends the trial.
        """
        step, rungs = self.training.step, self.stage.rungs
        return step if step >= rungs[-1] or (step in rungs and step not in reported) else None

    def next_rung(
        self,
        score: Callable[["TrialRun"], ComponentScore],
        advance: Callable[["TrialRun", int], None] | None = None,
    ) -> TrialResult:
        """Train to the next rung and score the trial there.

        score: scores the trial's model. advance: trains up to a step and saves the model; None trains in this process.
        A loss or score that is not finite ends the trial as failed; a full disk halts the search. Any other exception
        is raised.
        """
        self._began = time.perf_counter()
        try:
            result = self._saved_result() or self._train_and_score(score, advance or TrialRun.advance)
        except DivergedError as error:
            return self._result(failure=str(error))
        except Exception as error:
            if not disk_is_full(error, self.folder):
                raise
            return self._result(halt=f"{self.folder}: no space left on the disk")
        if result.done:
            self.close()
        return result

    def _saved_result(self) -> TrialResult | None:
        """The result of the unreported rung, if the trial was scored there before it was interrupted."""
        if self._unreported_rung is None:
            return None
        score = records.read_score(self.folder, self._unreported_rung)
        saved = checkpoint.read_meta(self.folder).extra
        if score is None or "magnitude" not in saved:
            return None
        self._unreported_rung = None
        magnitude, nfe = float(saved["magnitude"]), int(saved["nfe_per_frame"])
        return self._result(
            objective=score.ratio.value, magnitude=magnitude, nfe_per_frame=nfe, spread_skill=score.spread_skill
        )

    def _train_and_score(
        self, score: Callable[["TrialRun"], ComponentScore], advance: Callable[["TrialRun", int], None]
    ) -> TrialResult:
        step = self.training.step
        target = self._unreported_rung or next(rung for rung in self.stage.rungs if rung > step)
        self._unreported_rung = None
        if step < target:
            advance(self, target)
        trained = time.perf_counter()
        scored = score(self)
        spent: dict[str, Any] = {"training": trained - self._began, "scoring": time.perf_counter() - trained}
        objective = scored.score.ratio.value
        if not math.isfinite(objective):
            return self._result(failure="the forecast is not finite")
        records.save_score(self.folder, target, scored.score)
        self.monitor().score(target, objective)
        fitted: dict[str, Any] = {"magnitude": scored.magnitude, "nfe_per_frame": scored.nfe_per_frame}
        spread = scored.score.spread_skill
        result = self._result(objective=objective, spread_skill=spread, **fitted, **spent, trained=target - step)
        self._seconds = result.seconds
        self.training.save(
            self.folder,
            residual_std=list(scored.residual_std),
            extra=self._inherited | fitted | {"seconds": self._seconds},
        )
        return result

    def advance(self, target: int) -> None:
        """Train up to step `target` in this process, saving the model every train.checkpoint_every steps before it."""
        training, every, monitor = self.training, self.experiment.train.checkpoint_every, self.monitor()

        def report(progress: Progress) -> None:
            monitor.log(progress.metrics())

        while training.step < target:
            stop = min(target, (training.step // every + 1) * every)
            training.advance(stop, report, every=max(1, target // 10))
            if stop < target:
                training.save(self.folder, extra=self._inherited | {"seconds": self._seconds_so_far()})

    def monitor(self) -> Monitor:
        """The metrics log of the trial, shared by all its rungs."""
        if self._monitor is None:
            label = component_label(self.experiment, self.stage.workspace) if self.stage.wandb else None
            self._monitor = Monitor(self.folder, self.training.step, wandb=label, values=self._values)
        return self._monitor

    def close(self) -> None:
        """Close the metrics log. May be called repeatedly."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.close()

    def _seconds_so_far(self) -> float:
        return self._seconds + time.perf_counter() - self._began

    def _result(self, *, objective: float = math.inf, failure: str | None = None, **fields: Any) -> TrialResult:
        last, step = self.stage.rungs[-1], self.training.step
        return TrialResult(
            objective=objective,
            train_step=step if failure is None else max(step, last),
            trial=self.name,
            values=json.dumps(self._values),
            noise_std=self.experiment.train.noise_std,
            seconds=self._seconds_so_far(),
            done=failure is not None or fields.get("halt") is not None or step >= last,
            failure=failure,
            exploited=self._donor(step),
            **fields,
        )

    def _donor(self, step: int) -> str | None:
        """The trial whose weights this one took over at the rung before `step`."""
        exploited = self._inherited.get("exploited", {"step": None})
        before = max((rung for rung in self.stage.rungs if rung < step), default=None)
        return str(exploited["trial"]) if before is not None and exploited["step"] == before else None


class ScorerCache:
    """Scores trials; keeps the scorer for the most recent parent models, whose windows and models are slow to load."""

    def __init__(self, data: ExperimentData) -> None:
        self._data = data
        self._scorers: dict[ParentModels, ComponentScorer] = {}

    def __call__(self, run: TrialRun) -> ComponentScore:
        if run.parents not in self._scorers:
            self._scorers = {run.parents: ComponentScorer(run.experiment, self._data, run.parents)}
        return self._scorers[run.parents](run.stage.component, run.training.model, run.experiment.evaluation)


def model_exists(folder: Path) -> bool:
    """Whether a folder holds a saved model, possibly in a backup left by an interrupted replacement."""
    return (standing(folder) / "config.json").is_file()
