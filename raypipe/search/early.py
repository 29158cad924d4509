"""The record, in the study, that a stage has ended before all its trials."""

from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import BaseStorage

from raypipe.config import Component, Search
from raypipe.search.limits import Reason
from raypipe.search.study import ended_trials, read_only
from raypipe.workspace.layout import Workspace

EARLY = "ended_early"
"""User attribute of a study: null, or the fields of `EarlyEnd`."""


@dataclass(frozen=True)
class EarlyEnd:
    """Why a stage has ended early. limit: the value of the field of `search` then."""

    reason: Reason
    limit: float

    def holds(self, search: Search) -> bool:
        """Whether `search.patience` ended the stage and, as it has not been raised or removed since, still does."""
        return self.reason == "patience" and search.patience is not None and search.patience <= self.limit


def read_early(path: Path, name: str) -> EarlyEnd | None:
    """The record of a stage; None if it has not ended early. path: the journal, which is opened for reading only."""
    if not path.is_file():
        return None
    return early_of(read_only(path), name)


def early_of(storage: BaseStorage, name: str) -> EarlyEnd | None:
    """The record of a stage in an open storage; None if the stage has not ended early."""
    if name not in optuna.get_all_study_names(storage):
        return None
    stored = optuna.load_study(study_name=name, storage=storage).user_attrs.get(EARLY)
    return None if stored is None else EarlyEnd(**stored)


def left_out(workspace: Workspace, component: Component, search: Search) -> str | None:
    """What a stage that has ended early left out, and how to go on, in one line; None if it has left out nothing."""
    early = read_early(workspace.study, component)
    ended, trials = ended_trials(workspace.study, component), search.stages[component].trials
    if early is None or ended >= trials:
        return None
    if early.reason == "minutes":
        why = f"its share of search.minutes ({early.limit:g}) is used up"
        extend = "extend with --resume --search.minutes N, or null"
    else:
        why = f"the best score has not improved in {early.limit:g} trials (search.patience)"
        extend = "extend with --resume --search.patience N, or null"
    return f"{component} stage: {ended} of {trials} trials, {why}; {extend}"
