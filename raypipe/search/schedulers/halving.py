"""Trials that wait for each other at every rung, and synchronous successive halving, which stops the weak there."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raypipe.distributed.ray_internals import stop_paused


class SynchronousScheduler(FIFOScheduler, ABC):
    """All trials of a search go from rung to rung together: who has come to one pauses until nobody is on the way.

    Then the lowest rung at which trials wait is judged. That happens a step of Tune's loop after the last result, when
    the study has it, so a search that is killed judges again after --resume, by the same scores: trials that have not
    been judged at a rung in this process, whatever is on record, tell it again.

    known: objectives by trial name and step; trials: how many will be added; places: how many may run or wait for
    resources at once (0: any number). Scores are of names, which a resumed search gives again. Who drives this
    without Tune gives a controller without `stop_trial`; trials that are stopped are then told by their status.
    """

    def __init__(self, known: Mapping[str, Mapping[int, float]], trials: int, places: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scores: dict[int, dict[str, float]] = {}
        for name, scores in known.items():
            for step, objective in scores.items():
                self._record(name, step, objective)
        self._trials, self._places = trials, places
        self._living: dict[str, Any] = {}
        self._waiting: dict[str, int] = {}
        self._passed: dict[str, list[int]] = {}

    @abstractmethod
    def judge(self, rung: int, waiting: Mapping[str, Any]) -> list[str]:
        """Who of the trials that wait at a rung is stopped there."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A new trial waits too, for `choose_trial_to_run`; one whose process failed starts again at once."""
        name = trial.config["trial"]
        if name not in self._passed:
            self._passed[name] = []
            trial.status = Trial.PAUSED
        trial.config["reported"] = list(self._passed[name])
        self._living[name] = trial
        self._waiting.pop(name, None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name, rung = trial.config["trial"], result["train_step"]
        self._record(name, rung, result["objective"])
        self._waiting[name] = rung
        return str(TrialScheduler.PAUSE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if "objective" in result:
            self._record(trial.config["trial"], result["train_step"], result["objective"])
        self._leave(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._leave(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._leave(trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The trial that goes on next, as long as there is a place; a rung at which all wait is judged first."""
        if self._all_wait():
            self._judge_lowest(tune_controller)
        busy = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._living.values())
        if self._places and busy >= self._places:
            return None
        idle = (t for name, t in self._living.items() if t.status == Trial.PAUSED and name not in self._waiting)
        return next(idle, None)

    def _all_wait(self) -> bool:
        if not self._living or len(self._passed) < self._trials:
            return False
        return all(t.status == Trial.PAUSED and name in self._waiting for name, t in self._living.items())

    def _judge_lowest(self, controller: Any) -> None:
        rung = min(self._waiting.values())
        waiting = {name: self._living[name] for name, at in self._waiting.items() if at == rung}
        for name in self.judge(rung, waiting):
            self._stop(controller, waiting.pop(name))
        for name, trial in waiting.items():
            del self._waiting[name]
            self._passed[name].append(rung)
            trial.config["reported"] = list(self._passed[name])

    def _stop(self, controller: Any, trial: Any) -> None:
        if hasattr(controller, "stop_trial"):
            stop_paused(controller, trial)
        else:
            trial.status = Trial.TERMINATED
            self._leave(trial)

    def _leave(self, trial: Any) -> None:
        self._living.pop(trial.config["trial"], None)
        self._waiting.pop(trial.config["trial"], None)

    def _record(self, name: str, step: int, objective: float) -> None:
        """The first score counts; a failed trial has none."""
        if math.isfinite(objective):
            self._scores.setdefault(step, {}).setdefault(name, objective)

    def _ranked(self, rung: int) -> list[str]:
        """All that were scored at a rung, best first; of equals, the one that was proposed first."""
        scores = self._scores[rung]
        return sorted(scores, key=lambda name: (scores[name], len(name), name))


class Halving(SynchronousScheduler):
    """Synchronous successive halving (Jamieson & Talwalkar 2016): the best 1/k of all at a rung, at least one, go on.

    Those count that were scored; trials that failed on their way leave fewer places.
    """

    def __init__(
        self, known: Mapping[str, Mapping[int, float]], trials: int, places: int, *, reduction_factor: int
    ) -> None:
        super().__init__(known, trials, places)
        self._reduction_factor = reduction_factor

    def judge(self, rung: int, waiting: Mapping[str, Any]) -> list[str]:
        ranked = self._ranked(rung)
        best = ranked[: max(1, len(ranked) // self._reduction_factor)]
        return [name for name in waiting if name not in best]
