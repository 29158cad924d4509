"""All uses of private APIs of Optuna; tests/search/test_optuna_internals.py fails if one of them changes.

Optuna has no public API to resume a RUNNING trial of another process, to set a user attribute of a FrozenTrial, or to
read the point of an enqueued trial.
"""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial


def resume_trial(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Resume a RUNNING trial of an earlier process, as if this process had got it from `study.ask()`."""
    return optuna.Trial(study, trial._trial_id)


def set_user_attribute(study: optuna.Study, trial: FrozenTrial, name: str, value: Any) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, name, value)


FIXED = "fixed_params"
"""System attribute in which `study.enqueue_trial` stores the point of a trial."""


def enqueued_point(trial: FrozenTrial) -> dict[str, Any]:
    """The encoded point that `study.enqueue_trial` gave a trial; empty for other trials."""
    return dict(trial.system_attrs.get(FIXED, {}))


def enqueued(point: Mapping[str, Any]) -> FrozenTrial:
    """A trial as `study.enqueue_trial` makes it; values that the point does not give are sampled."""
    return create_trial(state=TrialState.WAITING, system_attrs={FIXED: dict(point)} if point else {})
