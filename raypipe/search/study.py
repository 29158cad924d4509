"""The Optuna study of a search, stored in a journal file so that a search can be resumed."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raypipe.search.optuna_internals import set_user_attribute

OTHER_AXES = "was cut off, and has axes that this search does not"
"""Failure reason, in studies of earlier versions of raypipe, of an interrupted trial whose axes had changed.

It is not counted. The text is stored in study files and compared with them, so it must not change.
"""
REASON = "error"
"""User attribute of a failed trial: why it failed."""
VALUES = "values"
"""User attribute of a trial that has begun: its config fields by dotted name, which a changed space may not contain."""
CLOSED = "closed"
"""User attribute of a study: whether the finalists of its stage have been written since its last trial ended."""
STEP = "train_step"
"""User attribute of a completed trial: the training step that it reached."""


def open_storage(path: Path) -> JournalStorage:
    """Open the journal for writing. The caller must have locked the experiment (`workspace.claims.hold`).

    An incomplete last line, left by a full disk or a crash, is removed: appending to it would make the file unreadable.
    """
    if path.is_file():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


def known_trials(storage: BaseStorage, name: str) -> list[FrozenTrial]:
    """The trials of a study; empty if the study does not exist."""
    if name not in optuna.get_all_study_names(storage):
        return []
    return list(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False))


def count_ended(trials: Sequence[FrozenTrial]) -> int:
    """Number of trials that are finished, stopped or failed, without those dropped for OTHER_AXES."""
    return sum(has_ended(trial) for trial in trials)


def has_ended(trial: FrozenTrial) -> bool:
    """Whether a trial is finished, stopped or failed, and not just dropped for OTHER_AXES."""
    return trial.state.is_finished() and trial.user_attrs.get(REASON) != OTHER_AXES


def ended_in_order(storage: BaseStorage, name: str) -> list[tuple[str, float | None]]:
    """Names and first objectives of the trials of a study that have ended, in that order; None for failed trials."""
    known = known_trials(storage, name)
    ended = [(t.datetime_complete, t) for t in known if t.datetime_complete and count_ended([t])]
    return [
        (trial_name(name, t.number), t.values[0] if t.state == TrialState.COMPLETE else None)
        for _, t in sorted(ended, key=lambda pair: pair[0])
    ]


def rung_scores(trials: Sequence[FrozenTrial], name: str) -> dict[str, dict[int, float]]:
    """Objectives by trial name and training step of the rung."""
    return {
        trial_name(name, trial.number): dict(trial.intermediate_values) for trial in trials if trial.intermediate_values
    }


def trial_name(study: str, number: int) -> str:
    """Name of a trial, such as `flow-03`."""
    return f"{study}-{number:02d}"


def drop_running(study: optuna.Study, trials: Sequence[FrozenTrial], reason: str) -> None:
    """Mark those of the trials that are RUNNING as failed, so that samplers ignore them."""
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            set_user_attribute(study, trial, REASON, reason)
            study.tell(trial.number, state=TrialState.FAIL)


def importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each axis for the first objective, as shares (PED-ANOVA, Watanabe et al. 2023).

    Empty if fewer than four trials have a score, or if all scores are equal.
    """
    scored = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(scored) < 4 or len({trial.values[0] for trial in scored}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is experimental, and assumes that lower targets are better
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        first = (lambda trial: trial.values[0]) if len(study.directions) > 1 else None
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, target=first))


def read_trials(path: Path, name: str) -> list[FrozenTrial]:
    """The trials of a stage, from its journal, which is opened for reading only."""
    return known_trials(read_only(path), name) if path.is_file() else []


def ended_trials(path: Path, name: str) -> int:
    """Number of ended trials of a stage, from its journal, which is opened for reading only."""
    return count_ended(read_trials(path, name))


def has_begun(path: Path, name: str) -> bool:
    """Whether a stage has trials that run or have ended, from its journal, which is opened for reading only."""
    return any(trial.state != TrialState.WAITING for trial in read_trials(path, name))


def is_closed(storage: BaseStorage, name: str) -> bool:
    """Whether CLOSED is true, or not known, for a stage."""
    if name not in optuna.get_all_study_names(storage):
        return True
    return bool(optuna.load_study(study_name=name, storage=storage).user_attrs.get(CLOSED, True))


def set_closed(path: Path, name: str, closed: bool) -> None:
    """Store CLOSED in the study of a stage, if it has one. The caller must have locked the experiment."""
    if path.is_file() and name in optuna.get_all_study_names(storage := open_storage(path)):
        optuna.load_study(study_name=name, storage=storage).set_user_attr(CLOSED, closed)


def read_only(path: Path) -> JournalStorage:
    """The journal, which nothing may be written to."""
    return JournalStorage(JournalFileBackend(str(path)))
