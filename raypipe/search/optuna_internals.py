"""Every use of a private API of Optuna, in one place; tests/search/test_optuna_internals.py fails if one changes.

Public API lets nobody resume a trial that another process was running, or annotate one that is not at hand as a Trial.
"""

from typing import Any

import optuna
from optuna.trial import FrozenTrial


def resume_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """A RUNNING trial of an earlier process, to suggest, report and tell as if this process had asked for it."""
    return optuna.Trial(study, trial._trial_id)


def set_user_attribute(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, name, value)
