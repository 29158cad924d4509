"""The state of a search at a moment: while it runs, after it was killed, once it is finished.

Everything is read from its files, without Ray and without torch, so it takes about a second.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from raypipe.config import Component, Experiment
from raypipe.search import records
from raypipe.search.configured import trial_config
from raypipe.search.progress import StageProgress, is_evaluated, read_study, stage_progress
from raypipe.search.records import Row
from raypipe.search.study import REASON, VALUES, known_trials, trial_name
from raypipe.training.monitor import METRICS, read_metrics
from raypipe.workspace.claims import LOCK, runner
from raypipe.workspace.layout import Workspace


@dataclass(frozen=True)
class Training:
    """A training that runs, of a trial or of a finalist, with the step that it has logged, of `steps`."""

    component: Component
    name: str
    step: int
    steps: int


@dataclass(frozen=True)
class Overview:
    """A search at the moment at which its files were read.

    runner: the process that runs it; None if none does. began: when the last such process began, as a time stamp of its
    lock file. rows: the row of each trial and each refit at its last rung, see `raypipe.search.records`, with its state
    of `StageProgress` as `status`; before the first rung with step 0 and no objective. rungs: the rows of all rungs.
    running: the trials, and the finalists that are retrained. chosen: rows of combinations.parquet of the combination
    that the evaluation chose, one for each split. evaluated: whether `best/` is that of the present finalists.
    """

    workspace: Workspace
    experiment: Experiment
    runner: str | None
    began: float
    stages: Sequence[StageProgress]
    rows: Sequence[Row]
    rungs: Sequence[Row]
    running: Sequence[Training]
    chosen: Sequence[Row]
    evaluated: bool

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.evaluated and all(stage.searched for stage in self.stages)

    @property
    def state(self) -> str:
        """`running`, `finished` or `not running`."""
        return "running" if self.runner is not None else "finished" if self.finished else "not running"

    @property
    def best(self) -> list[Row]:
        """The rows with an objective, best first; without failed trials."""
        scored = [row for row in self.rows if row["status"] != "failed" and records.is_finite(row["objective"])]
        return sorted(scored, key=lambda row: row["objective"])


def read_overview(
    workspace: Workspace, *, ended: bool = False, read: Callable[[Path], list[dict[str, Any]]] = read_metrics
) -> Overview:
    """Read a search. Raises ConfigError if the folder holds no experiment, or if one of its tables cannot be read.

    ended: take the search as ended although its lock is held, by the caller. read: reads the log of a training.
    """
    experiment = workspace.experiment()
    running = None if ended else runner(workspace)
    storage = read_study(workspace.study)  # before the table, which is written after it
    rungs = records.read_rows(workspace.trials)
    last = records.last_rows(rungs)
    combinations = records.read_rows(workspace.evaluation / "combinations.parquet")
    stages = [
        stage_progress(workspace, storage, last, component, experiment.search, running is not None)
        for component in experiment.search.searched
    ]
    rows = [row for stage in stages for row in _rows(experiment, storage, stage, last)]
    lock = workspace.folder / LOCK
    return Overview(
        workspace,
        experiment,
        running,
        lock.stat().st_mtime if lock.is_file() else 0.0,
        stages,
        rows,
        rungs,
        [] if running is None else _running(workspace, experiment, stages, rows, read),
        [row for row in combinations if row["chosen"]],
        is_evaluated(workspace, experiment.search),
    )


def _running(
    workspace: Workspace,
    experiment: Experiment,
    stages: Sequence[StageProgress],
    rows: Sequence[Row],
    read: Callable[[Path], list[dict[str, Any]]],
) -> list[Training]:
    """The trainings that run: trials, by their state, and finalists whose logs are newer than the table of trials."""
    folders = [(row["stage"], workspace.run(row["stage"], row["trial"])) for row in rows if row["status"] == "running"]
    named = [(component, folder, experiment.search.stages[component].steps) for component, folder in folders]
    for stage in stages:
        ended = stage.states and not stage.searched and not stage.left and not stage.counts["running"]
        if ended and workspace.trials.is_file():
            steps = experiment.search.stages[stage.component].refit_steps
            named += [(stage.component, folder, steps) for folder in _retraining(workspace, stage.component)]
    trainings = []
    for component, folder, steps in named:
        logged = read(folder)
        trainings.append(Training(component, folder.name, logged[-1]["step"] if logged else 0, steps))
    return trainings


def _retraining(workspace: Workspace, component: Component) -> list[Path]:
    """Model folders of the refits that have logged something since the last trial of their stage ended."""
    ended = workspace.trials.stat().st_mtime_ns
    logs = sorted((workspace.folder / component).glob(f"*-s[0-9]*.log/{METRICS}"))
    return [workspace.run(component, log.parent.stem) for log in logs if log.stat().st_mtime_ns > ended]


def _rows(experiment: Experiment, storage: BaseStorage, stage: StageProgress, last: Sequence[Row]) -> list[Row]:
    """The rows of a stage: its trials by name, then its refits."""
    mine = [row for row in last if row["stage"] == stage.component]
    written = {row["trial"]: row for row in mine if not row["refit"]}
    begun = {trial_name(stage.component, t.number): t.user_attrs for t in known_trials(storage, stage.component)}
    rows = []
    for name, state in stage.states.items():
        row = written.get(name)
        if row is None:
            values, reason = begun[name].get(VALUES), begun[name].get(REASON)
            configured = None if values is None else trial_config(experiment, stage.component, values)
            row = _begun(stage, name, configured)
            row |= {"values": None if values is None else json.dumps(values), "error": reason}
        rows.append(row | {"status": state})
    return rows + [row for row in mine if row["refit"]]


def _begun(stage: StageProgress, name: str, configured: Experiment | None) -> Row:
    """The row of a trial before its first rung. configured: None if its config is not known."""
    known = {"stage": stage.component, "trial": name, "step": 0, "objective": None}
    if configured is not None:
        known = records.rung_row(configured, name, 0, flow=None, score=None, default=None)
    return known | {"refit": False}
