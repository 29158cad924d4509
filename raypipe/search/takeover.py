"""Take the trials of a study over into a changed search space.

Optuna does not allow a study to change the choices of an axis, and samplers ignore trials with other ranges. So the
study is written anew, with all its trials, under the same numbers, in the distributions of the new space.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raypipe.common.files import atomic_path
from raypipe.config import Axis
from raypipe.search.optuna_internals import enqueued, enqueued_point
from raypipe.search.space import applying, decode, distribution, encode, fits, restrict
from raypipe.search.study import VALUES, known_trials, open_storage

Axes = Mapping[str, Axis]


@dataclass(frozen=True)
class Space:
    """A search space. default: the encoded point of the first trial. field: the config's value of a field, which a
    trial has unless it searched the field."""

    axes: Axes
    default: Mapping[str, Any]
    field: Callable[[str], Any]


def take_over(path: Path, name: str, before: Axes, space: Space, objectives: int) -> None:
    """Take the trials of a study over into a space; the journal is replaced atomically, and only if a trial changes.

    Trials that have begun keep their number, state, scores and values. Of their values, the study holds as parameters,
    from which samplers learn, those that the space contains. Proposals that have not begun are kept if the space
    contains them; else a new point is proposed under their number. If no trial has begun, the study is removed.

    path: the journal. before: the axes with which the trials were proposed. objectives: number of objectives.
    """
    if not path.is_file():
        return
    storage = open_storage(path)
    known = known_trials(storage, name)
    if not any(_begun(trial, before) for trial in known):
        if name in optuna.get_all_study_names(storage) and not _as_planned(storage, name, known, space, objectives):
            _rewrite(path, storage, {name: None})
        return
    moved = [_moved(trial, before, space) for trial in known]
    if any(_differ(old, new) for old, new in zip(known, moved, strict=True)):
        _rewrite(path, storage, {name: moved})


def _begun(trial: FrozenTrial, before: Axes) -> bool:
    """Whether a trial has started to train. Journals of earlier versions of raypipe have no VALUES."""
    if trial.state.is_finished() or VALUES in trial.user_attrs or trial.intermediate_values:
        return True
    return trial.state == TrialState.RUNNING and set(trial.params) == set(applying(before, trial.params))


def _as_planned(storage: JournalStorage, name: str, known: list[FrozenTrial], space: Space, objectives: int) -> bool:
    """Whether a study of which no trial has begun can be continued."""
    study = optuna.load_study(study_name=name, storage=storage)
    same = all(not _differ(trial, _moved(trial, space.axes, space)) for trial in known)
    return bool(known) and len(study.directions) == objectives and same


def _moved(trial: FrozenTrial, before: Axes, space: Space) -> FrozenTrial:
    if not _begun(trial, before):
        return _proposed_again(trial, space)
    axes = space.axes
    values = trial.user_attrs.get(VALUES) or {n: _decoded(before, n, v) for n, v in trial.params.items()}
    full = {name: values[name] if name in values else space.field(name) for name in axes}
    inside = {name: value for name, value in full.items() if _contains(name, axes[name], value)}
    params = restrict(axes, {name: encode(name, axes[name], value) for name, value in inside.items()})
    moved = copy.copy(trial)
    moved.params = params
    moved.distributions = {name: distribution(name, axes[name]) for name in params}
    moved.user_attrs = trial.user_attrs | {VALUES: values}
    return moved


def _proposed_again(trial: FrozenTrial, space: Space) -> FrozenTrial:
    """A proposal that has not begun, as a WAITING trial: of the same point, of the default or of any point."""
    axes = space.axes
    point = enqueued_point(trial) | trial.params
    within = set(point) <= set(applying(axes, point)) and all(fits(n, axes[n], value) for n, value in point.items())
    if within and all(trial.distributions[name] == distribution(name, axes[name]) for name in trial.params):
        return trial
    return enqueued(point if within else dict(space.default) if trial.number == 0 else {})


def _decoded(before: Axes, name: str, value: Any) -> Any:
    return decode(before[name], value) if name in before else value


def _contains(name: str, axis: Axis, value: Any) -> bool:
    """Whether an axis can propose a config value. With `axis.zero`, small values that are not 0 stand for 0."""
    code = encode(name, axis, value)
    if not fits(name, axis, code):
        return False
    back = decode(axis, code)
    return bool(back == value) or (isinstance(back, list | tuple) and list(back) == list(value))


def _differ(old: FrozenTrial, new: FrozenTrial) -> bool:
    parts = [(t.state, t.params, t.distributions, enqueued_point(t)) for t in (old, new)]
    return parts[0] != parts[1]


def _rewrite(path: Path, storage: JournalStorage, changed: Mapping[str, list[FrozenTrial] | None]) -> None:
    """Write the journal anew, with the trials of some studies replaced, or the study removed if they are None."""
    with atomic_path(path) as temporary:
        target = JournalStorage(JournalFileBackend(str(temporary)))
        for name in optuna.get_all_study_names(storage):
            old = optuna.load_study(study_name=name, storage=storage)
            trials = changed.get(name, old.get_trials(deepcopy=False))
            if trials is None:
                continue
            study = optuna.create_study(study_name=name, storage=target, directions=old.directions)
            for key, value in old.user_attrs.items():
                study.set_user_attr(key, value)
            study.add_trials(trials)
