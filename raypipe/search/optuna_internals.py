"""All uses of private APIs of Optuna; tests/search/test_optuna_internals.py fails if one of them changes.

Optuna has no public API to resume a RUNNING trial of another process, to set a user attribute of a FrozenTrial, to
read the point of an enqueued trial, or to attach an artifact to a trial that has ended (`upload_artifact` refuses it).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import optuna
from optuna.artifacts import ArtifactMeta
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


ARTIFACTS = "dashboard:artifacts:"
"""Begin of the system attributes of a study in which optuna-dashboard looks for artifacts of trials that have ended."""


def set_artifact(study: optuna.Study, trial: FrozenTrial, key: str, meta: ArtifactMeta | None) -> None:
    """Attach an artifact of the artifact store to a trial, which may have ended; None detaches it."""
    value = json.dumps(None if meta is None else asdict(meta))
    study._storage.set_study_system_attr(study._study_id, f"{ARTIFACTS}{trial._trial_id}:{key}", value)


def artifacts(study: optuna.Study, trial: FrozenTrial) -> set[str]:
    """The keys of the artifacts that `set_artifact` has attached to a trial."""
    begin = f"{ARTIFACTS}{trial._trial_id}:"
    kept = study._storage.get_study_system_attrs(study._study_id)
    return {name.removeprefix(begin) for name, value in kept.items() if name.startswith(begin) and value != "null"}
