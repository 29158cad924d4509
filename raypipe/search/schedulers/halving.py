"""Base class of schedulers in which all trials wait for each other at a rung, and synchronous successive halving."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raypipe.distributed.ray_internals import stop_paused


class SynchronousScheduler(FIFOScheduler, ABC):
    """A scheduler that pauses each trial at a rung until all trials are paused, then calls `judge`.

    The lowest rung at which trials wait is judged, one iteration of Tune's loop after the last result, so the study has
    recorded that result. A search killed in between judges the rung again after --resume, with the same scores, since
    trials report every rung again that has not been judged in the present process.

    known: objectives by trial name and step. trials: number of trials that will be added. places: largest number of
    trials that run or wait for resources, 0 for no limit. Scores are kept by `config["trial"]`, which stays the same in
    a resumed search. Without Tune, pass a controller without `stop_trial`: stopped trials get the status TERMINATED.
    """

    def __init__(self, known: Mapping[str, Mapping[int, float]], trials: int, places: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._scores: dict[int, dict[str, float]] = {}
        for name, scores in known.items():
            for step, objective in scores.items():
                self._record(name, step, objective)
        self._trials, self._places = trials, places
        self._active: dict[str, Any] = {}
        self._waiting: dict[str, int] = {}
        self._passed: dict[str, list[int]] = {}

    @abstractmethod
    def judge(self, rung: int, waiting: Mapping[str, Any]) -> list[str]:
        """Names of the waiting trials to stop at a rung. waiting: the trials by name."""

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Pause a new trial until `choose_trial_to_run` picks it; a trial whose process failed is not paused again."""
        name = trial.config["trial"]
        if name not in self._passed:
            self._passed[name] = []
            trial.status = Trial.PAUSED
        trial.config["reported"] = list(self._passed[name])
        self._active[name] = trial
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
        """The next trial to run; None if `places` trials are busy. If all trials wait, a rung is judged first."""
        if self._all_wait():
            self._judge_lowest(tune_controller)
        busy = sum(trial.status in (Trial.PENDING, Trial.RUNNING) for trial in self._active.values())
        if self._places and busy >= self._places:
            return None
        idle = (t for name, t in self._active.items() if t.status == Trial.PAUSED and name not in self._waiting)
        return next(idle, None)

    def _all_wait(self) -> bool:
        if not self._active or len(self._passed) < self._trials:
            return False
        return all(t.status == Trial.PAUSED and name in self._waiting for name, t in self._active.items())

    def _judge_lowest(self, controller: Any) -> None:
        rung = min(self._waiting.values())
        waiting = {name: self._active[name] for name, at in self._waiting.items() if at == rung}
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
        self._active.pop(trial.config["trial"], None)
        self._waiting.pop(trial.config["trial"], None)

    def _record(self, name: str, step: int, objective: float) -> None:
        """Record a score; only the first one at a rung counts, and a failed trial has none."""
        if math.isfinite(objective):
            self._scores.setdefault(step, {}).setdefault(name, objective)

    def _ranked(self, rung: int) -> list[str]:
        """Names of all trials scored at a rung, best first; ties are broken by the trial number."""
        scores = self._scores[rung]
        return sorted(scores, key=lambda name: (scores[name], len(name), name))


class Halving(SynchronousScheduler):
    """Synchronous successive halving (Jamieson & Talwalkar 2016): all but the best 1/k of the trials at a rung stop.

    At least one trial continues. Only trials with a score are counted; failed trials are not.
    k: `reduction_factor`.
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
