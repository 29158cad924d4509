"""How far a search is, read from its files without Ray and without torch: while it runs, or after it was killed."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from raypipe.config import Component, Search
from raypipe.search.early import early_of
from raypipe.search.records import Row
from raypipe.search.study import OTHER_AXES, REASON, STEP, count_ended, is_closed, known_trials, read_only, trial_name
from raypipe.workspace.layout import Workspace


@dataclass(frozen=True)
class StageProgress:
    """How far the search of a stage is.

    planned: number of trials that the config asks for. states: state of each trial that has begun, by name: `finished`
    at its last rung, `stopped` by the scheduler, `failed`, `running`, or `interrupted` if no process runs the search.
    searched: see `is_searched`. early: whether the stage has ended before all its trials. places: the largest number of
    trials that have run at a time.
    """

    component: Component
    planned: int
    states: Mapping[str, str]
    searched: bool
    early: bool
    places: int

    @property
    def counts(self) -> Counter[str]:
        """Number of trials by state."""
        return Counter(self.states.values())

    @property
    def left(self) -> int:
        """Number of trials that have not begun and will."""
        return 0 if self.searched else max(0, self.planned - len(self.states))


def read_study(path: Path) -> BaseStorage:
    """The journal of a search, which nothing may be written to; an empty one if there is none yet."""
    return read_only(path) if path.is_file() else InMemoryStorage()


def stage_progress(
    workspace: Workspace, storage: BaseStorage, rows: Sequence[Row], component: Component, search: Search, runs: bool
) -> StageProgress:
    """How far a stage is. storage: from `read_study`. rows: of trials.parquet. runs: whether a process runs the search.

    Its trials are those of the study and those of the table: a kill may come between the writes of the two.
    """
    written = {r["trial"]: r["status"] for r in rows if r["stage"] == component and not r["refit"]}
    trials = known_trials(storage, component)
    steps = search.stages[component].steps
    known = {trial_name(component, t.number): state for t in trials if (state := _state(t, steps)) is not None}
    states = {}
    for name in sorted({*written, *known}):
        state = written.get(name, "running")
        state = known.get(name, state) if state == "running" else state
        states[name] = "interrupted" if state == "running" and not runs else state
    return StageProgress(
        component,
        search.stages[component].trials,
        states,
        _is_searched(workspace, storage, component, search),
        early_of(storage, component) is not None,
        _places(trials),
    )


def _places(trials: Sequence[FrozenTrial]) -> int:
    """The largest number of trials between whose start and end there is a common moment; at least 1."""
    began = [(trial.datetime_start, 1) for trial in trials if trial.datetime_start is not None]
    ended = [(trial.datetime_complete, -1) for trial in trials if trial.datetime_start and trial.datetime_complete]
    return max(1, *itertools.accumulate(change for _, change in sorted(began + ended)), 1)


def _state(trial: FrozenTrial, steps: int) -> str | None:
    """State of a trial according to the study; None if it has not begun, or does not count. steps: of its last rung."""
    if trial.state == TrialState.WAITING or trial.user_attrs.get(REASON) == OTHER_AXES:
        return None
    if trial.state == TrialState.RUNNING:
        return "running"
    if trial.state == TrialState.FAIL:
        return "failed"
    reached = max([*trial.intermediate_values, trial.user_attrs.get(STEP, 0)])
    return "finished" if reached >= steps else "stopped"


def is_searched(workspace: Workspace, component: Component, search: Search) -> bool:
    """Whether a stage has finalists, chosen from all its trials, and as many ended trials as `search` asks for.

    If `search.patience` has ended the stage, and still does, it has no more trials to run. A finished stage may have no
    study at all.
    """
    return _is_searched(workspace, read_study(workspace.study), component, search)


def _is_searched(workspace: Workspace, storage: BaseStorage, component: Component, search: Search) -> bool:
    if not workspace.finalists(component).is_file() or not is_closed(storage, component):
        return False
    early, ended = early_of(storage, component), count_ended(known_trials(storage, component))
    if early is not None and early.holds(search):
        return True
    return ended >= search.stages[component].trials or (ended == 0 and early is None)


def is_unfinished(workspace: Workspace, search: Search) -> bool:
    """Whether a stage is not searched, or its finalists are newer than `best/`, which the evaluation makes of them."""
    if not all(is_searched(workspace, component, search) for component in search.searched):
        return True
    return not is_evaluated(workspace, search)


def is_evaluated(workspace: Workspace, search: Search) -> bool:
    """Whether `best/` was made of the present finalists of all stages."""
    best = workspace.best / "manifest.json"
    finalists = [workspace.finalists(component) for component in search.searched]
    if not best.is_file() or not all(path.is_file() for path in finalists):
        return False
    return best.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in finalists)
