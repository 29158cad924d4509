"""All uses of private APIs of Optuna; tests/search/test_optuna_internals.py fails if one of them changes.

Optuna has no public API to resume a RUNNING trial of another process, or to set a user attribute of a FrozenTrial.
"""

from typing import Any

import optuna
from optuna.trial import FrozenTrial


def resume_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Resume a RUNNING trial of an earlier process, as if this process had got it from `study.ask()`."""
    return optuna.Trial(study, trial._trial_id)


def set_user_attribute(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, name, value)
