"""Simulate a search on recorded learning curves, with the real samplers and schedulers but without training.

A trial follows the recorded learning curve (`record.py`) whose settings are nearest to the proposed ones. A simulated
clock accounts for the number of workers, stragglers and failures, so a search takes seconds.
"""

import heapq
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage

from raypipe import config
from raypipe.config import Axis, Experiment
from raypipe.search import records
from raypipe.search.schedulers import make_scheduler
from raypipe.search.stage import Stage
from raypipe.search.tuner import make_searcher
from raypipe.workspace.layout import Workspace

RECORDED = Path(__file__).parents[2] / "tests" / "recorded" / "flow.parquet"
AXES = {
    "train.noise_std": Axis(low=0.01, high=0.4, log=True, zero=True),
    "train.loss": Axis(choices=["nll", "mse"]),
    "train.learning_rate": Axis(low=3e-4, high=9.6e-3, log=True),
}
"""The search space, which the grid covers."""


@dataclass(frozen=True)
class Rung:
    """A rung of a learning curve. seconds: time since the previous rung."""

    step: int
    objective: float
    seconds: float


class Curves:
    """The recorded learning curves, by settings and seed.

    All trainings have the same architecture, so each rung is assumed to take the same time in all of them: the median
    of the recorded times, which removes the effect of other load on the machine.
    """

    def __init__(self, path: Path = RECORDED) -> None:
        rows: dict[tuple[float, str, float, int], list[records.Row]] = {}
        for row in records.read_rows(path):
            rows.setdefault((row["noise_std"], row["loss"], row["learning_rate"], row["seed"]), []).append(row)
        taken: dict[int, list[float]] = {}
        for curve in rows.values():
            curve.sort(key=lambda row: row["step"])
            for row, before in zip(curve, [0.0, *(row["seconds"] for row in curve)], strict=False):
                taken.setdefault(row["step"], []).append(row["seconds"] - before)
        self._curves = {
            key: [Rung(row["step"], row["objective"], float(np.median(taken[row["step"]]))) for row in curve]
            for key, curve in rows.items()
        }
        self._noise = np.array(sorted({key[0] for key in rows}))
        self._rates = np.array(sorted({key[2] for key in rows}))
        self.seeds = sorted({key[3] for key in rows})

    @property
    def rungs(self) -> list[int]:
        """Training steps of the recorded rungs."""
        return [rung.step for rung in max(self._curves.values(), key=len)]

    @property
    def configurations(self) -> int:
        """Number of recorded settings, not counting seeds."""
        return len({key[:3] for key in self._curves})

    def of(self, values: Mapping[str, Any], seed: int, rungs: int | None = None) -> list[Rung]:
        """The learning curve with the nearest settings (on the scale of each axis). rungs: keep only its last rungs."""
        curve = self._curves[*self._cell(values), seed]
        early = 0 if rungs is None else len(curve) - rungs
        if early <= 0:
            return curve
        first = curve[early]
        return [Rung(first.step, first.objective, sum(r.seconds for r in curve[: early + 1])), *curve[early + 1 :]]

    def expected(self, values: Mapping[str, Any]) -> float:
        """The objective at the last rung, averaged over the recorded seeds."""
        return float(np.mean([self._curves[*self._cell(values), seed][-1].objective for seed in self.seeds]))

    def best(self) -> float:
        """The lowest expected objective in the grid."""
        cells = {key[:3] for key in self._curves}
        return min(float(np.mean([self._curves[*cell, s][-1].objective for s in self.seeds])) for cell in cells)

    def _cell(self, values: Mapping[str, Any]) -> tuple[float, str, float]:
        noise, rate = values["train.noise_std"], values["train.learning_rate"]
        positive = self._noise[self._noise > 0]
        level = 0.0 if noise == 0 else float(positive[np.abs(np.log(positive / noise)).argmin()])
        return level, values["train.loss"], float(self._rates[np.abs(np.log(self._rates / rate)).argmin()])


@dataclass(frozen=True)
class Setting:
    """Settings of a simulated search.

    steps: budget of training steps over all trials; None: no budget. stragglers: probability that a trial takes
    `slowdown` times as long. failures: probability, per rung, that a trial fails before it. rungs: number of rungs.
    """

    sampler: str = "tpe"
    scheduler: str = "asha"
    trials: int = 1000
    steps: int | None = None
    workers: int = 1
    stragglers: float = 0.0
    slowdown: float = 3.0
    failures: float = 0.0
    rungs: int = Experiment().search.rungs
    seed: int = 0


@dataclass
class Run:
    """Result of a simulated search. trials: started. stopped, failed: of these. seconds: on the simulated clock.

    best: a tuple whenever a trial finishes with a new lowest objective: (training steps of all trials so far, seconds,
    objective of the recorded seed, objective averaged over seeds).
    """

    trials: int = 0
    stopped: int = 0
    failed: int = 0
    steps: int = 0
    seconds: float = 0.0
    best: list[tuple[int, float, float, float]] = field(default_factory=list)

    def at(self, steps: float) -> float:
        """Expected objective of the best trial known after this many training steps; inf if there is none."""
        return next((expected for at, _, _, expected in reversed(self.best) if at <= steps), math.inf)


@dataclass
class _Trial:
    """The attributes of a Ray Tune trial that schedulers and the searcher use, and the simulated state.

    slow: factor on the time of each rung. rung: index of the next rung.
    """

    trial_id: str
    config: dict[str, Any]
    curve: list[Rung]
    slow: float
    status: str = "PENDING"
    rung: int = 0
    last_result: dict[str, Any] = field(default_factory=dict)


def experiment(setting: Setting, rungs: list[int]) -> Experiment:
    """The config of the simulated search."""
    return config.replace(Experiment(), **{
        "search.sampler": setting.sampler,
        "search.scheduler": setting.scheduler,
        "search.flow.axes": {name: vars(axis) for name, axis in AXES.items()},
        "search.flow.trials": setting.trials,
        "search.flow.steps": rungs[-1],
        "search.rungs": len(rungs),
        "search.seed": setting.seed,
        "model.time_input": True,
    })  # fmt: skip


def replay(curves: Curves, setting: Setting) -> Run:
    """Simulate a search. Deterministic."""
    return _Replay(curves, setting).run()


class _Replay:
    def __init__(self, curves: Curves, setting: Setting) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._curves, self._setting = curves, setting
        made = experiment(setting, curves.rungs[-setting.rungs :])
        stage = Stage(made, Workspace(Path(), "replay"), "flow")
        self._search = make_searcher(stage, InMemoryStorage())
        # Any: Ray Tune's schedulers expect its own trial and controller, but use only the attributes provided here.
        self._scheduler: Any = make_scheduler(made.search, stage.rungs, {}, setting.trials, setting.workers)
        if self._scheduler is not None:
            self._scheduler.set_search_properties("objective", "min")
        self._trials: list[_Trial] = []
        self._controller: Any = SimpleNamespace(
            get_trials=lambda: self._trials, stop_trial=self._stop, _set_trial_status=lambda trial, status: None
        )
        self._rng = np.random.default_rng(setting.seed)
        self._order = itertools.count()
        self._events: list[tuple[float, int, _Trial]] = []
        self._clock = 0.0
        self._run = Run()

    def run(self) -> Run:
        while True:
            while len(self._events) < self._setting.workers and self._start_one():
                pass
            if not self._events:
                return self._run
            self._clock, _, trial = heapq.heappop(self._events)
            self._run.seconds = self._clock
            self._reach(trial)

    def _start_one(self) -> bool:
        """Start or continue a trial on a free worker. Returns False if there is none or the budget is used up."""
        budget = self._setting.steps
        if budget is not None and self._run.steps >= budget:
            return False
        if len(self._trials) < self._setting.trials and not any(t.status == "PENDING" for t in self._trials):
            self._propose()
        trial = self._next()
        if trial is None:
            return False
        trial.status = "RUNNING"
        self._go_on(trial)
        return True

    def _next(self) -> _Trial | None:
        if self._scheduler is None:
            return next((trial for trial in self._trials if trial.status == "PENDING"), None)
        found: _Trial | None = self._scheduler.choose_trial_to_run(self._controller)
        return found

    def _propose(self) -> None:
        name = f"t{len(self._trials):05d}"
        proposed = self._search.suggest(name)
        seed = self._curves.seeds[self._setting.seed % len(self._curves.seeds)]
        slow = self._setting.slowdown if self._rng.random() < self._setting.stragglers else 1.0
        trial = _Trial(name, proposed, self._curves.of(proposed["values"], seed, self._setting.rungs), slow)
        self._trials.append(trial)
        self._run.trials += 1
        if self._scheduler is not None:
            self._scheduler.on_trial_add(self._controller, trial)

    def _go_on(self, trial: _Trial) -> None:
        """Schedule the arrival at the next rung. The steps count toward the budget immediately."""
        rung = trial.curve[trial.rung]
        self._run.steps += rung.step - (trial.curve[trial.rung - 1].step if trial.rung else 0)
        heapq.heappush(self._events, (self._clock + trial.slow * rung.seconds, next(self._order), trial))

    def _reach(self, trial: _Trial) -> None:
        """Process the arrival of a trial at its next rung, or its failure."""
        rung = trial.curve[trial.rung]
        dies = self._rng.random() < self._setting.failures or not math.isfinite(rung.objective)
        result = {
            "objective": math.inf if dies else rung.objective,
            "train_step": rung.step,
            "failure": "died" if dies else None,
            "trial_id": trial.trial_id,
        }
        trial.last_result = result
        trial.rung += 1
        if dies or trial.rung == len(trial.curve):
            self._end(trial, result, failed=dies)
            return
        self._search.on_trial_result(trial.trial_id, result)
        decision = self._scheduler.on_trial_result(self._controller, trial, result) if self._scheduler else "CONTINUE"
        if decision == "CONTINUE":
            self._go_on(trial)
        elif decision == "PAUSE":
            trial.status = "PAUSED"
        else:
            self._stop(trial)

    def _stop(self, trial: _Trial) -> None:
        self._run.stopped += 1
        self._end(trial, trial.last_result)

    def _end(self, trial: _Trial, result: dict[str, Any], failed: bool = False) -> None:
        trial.status = "TERMINATED"
        if self._scheduler is not None:
            self._scheduler.on_trial_complete(self._controller, trial, result)
        self._search.on_trial_complete(trial.trial_id, result)
        self._run.failed += failed
        best = self._run.best[-1][2] if self._run.best else math.inf
        if not failed and trial.rung == len(trial.curve) and result["objective"] < best:
            expected = self._curves.expected(trial.config["values"])
            self._run.best.append((self._run.steps, self._clock, result["objective"], expected))
