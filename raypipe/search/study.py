"""The Optuna study of a search: a journal that outlives the processes that write it."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raypipe.search.optuna_internals import set_user_attribute

OTHER_AXES = "was cut off, and has axes that this search does not"
"""Why a trial that was running is not taken up: it counts as none."""
REASON = "error"
"""The attribute of a failed trial that says why it failed."""
STEP = "train_step"
"""The attribute of a trial that is over: the training step that it reached."""


def open_storage(path: Path) -> JournalStorage:
    """The journal for writing; whoever does so holds the experiment (`workspace.claims.hold`).

    A line that a full disk or a crash cut short is dropped: another one after it would make the file unreadable.
    """
    if path.is_file():
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path)))


def known_trials(storage: BaseStorage, name: str) -> list[FrozenTrial]:
    """The trials of a study; none if it has not begun."""
    if name not in optuna.get_all_study_names(storage):
        return []
    return list(optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False))


def count_ended(trials: Sequence[FrozenTrial]) -> int:
    """The trials that ran and are over: finished, stopped or failed."""
    return sum(trial.state.is_finished() and trial.user_attrs.get(REASON) != OTHER_AXES for trial in trials)


def rung_scores(trials: Sequence[FrozenTrial], name: str) -> dict[str, dict[int, float]]:
    """The objective of each trial, by its name, at the steps of the rungs that it has passed."""
    return {
        trial_name(name, trial.number): dict(trial.intermediate_values) for trial in trials if trial.intermediate_values
    }


def trial_name(study: str, number: int) -> str:
    return f"{study}-{number:02d}"


def drop_running(study: optuna.Study, trials: Sequence[FrozenTrial], reason: str) -> None:
    """End trials that nobody will go on with as failed; samplers do not learn from those."""
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            set_user_attribute(study, trial, REASON, reason)
            study.tell(trial.number, state=TrialState.FAIL)


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each axis tells good trials from the rest, as shares (PED-ANOVA, Watanabe et al. 2023).

    None before four trials have a score, or if all scores are alike.
    """
    scored = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    if len(scored) < 4 or len({trial.values[0] for trial in scored}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental, and that less of a target is taken for better
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        first = (lambda trial: trial.values[0]) if len(study.directions) > 1 else None
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator, target=first))


def ended_trials(path: Path, name: str) -> int:
    """How many trials of a stage have ended, by its journal; reads only."""
    if not path.is_file():
        return 0
    return count_ended(known_trials(JournalStorage(JournalFileBackend(str(path))), name))
