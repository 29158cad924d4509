"""The space of a search in Optuna's terms, and the points that a search begins with."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from raypipe import config
from raypipe.config import LOSSES, Axis, Component, Experiment


def distribution(name: str, axis: Axis) -> BaseDistribution:
    """Optuna's form of an axis. With `zero`, the lowest eighth of a log range stands for 0."""
    if axis.choices is not None:
        return CategoricalDistribution([_plain(choice) for choice in axis.choices])
    assert axis.low is not None
    assert axis.high is not None
    kind = dict(config.field_names())[name].type
    if kind == "int":
        return IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    low = axis.low * (axis.low / axis.high) ** (1 / 7) if axis.zero else axis.low
    return FloatDistribution(low, axis.high, log=axis.log)


def _plain(choice: Any) -> Any:
    """A choice as a study keeps it: a list, such as model.logit_range, becomes its JSON."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


def decode(axis: Axis, value: Any) -> Any:
    """A proposed value as a config value: below the range is 0."""
    if axis.choices is not None:
        return next((choice for choice in axis.choices if _plain(choice) == value), value)
    return 0.0 if axis.zero and axis.low is not None and value < axis.low else value


def encode(name: str, axis: Axis, value: Any) -> Any:
    """A config value as a proposed one: the inverse of `decode`."""
    space: Any = distribution(name, axis)
    return space.low if axis.zero and value == 0 else _plain(value)


def fits(name: str, axis: Axis, value: Any) -> bool:
    """Whether the axis can propose the value, encoded."""
    if axis.choices is not None:
        return any(value is choice or value == choice for choice in map(_plain, axis.choices))
    space: Any = distribution(name, axis)
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(space.low <= value <= space.high)


def applying(axes: Mapping[str, Axis], point: Mapping[str, Any]) -> list[str]:
    """The axes that a trial at the point, encoded, has: those whose conditions hold there."""
    values = {name: decode(axes[name], value) for name, value in point.items() if name in axes}
    return [name for name in _parents_first(axes) if axes[name].applies(values)]


def restrict(axes: Mapping[str, Axis], point: Mapping[str, Any]) -> dict[str, Any]:
    """A point without the values of axes that do not apply at it."""
    return {name: point[name] for name in applying(axes, point) if name in point}


def suggest(trial: optuna.Trial, axes: Mapping[str, Axis]) -> dict[str, Any]:
    """Ask for the value of every axis that applies: the encoded point."""
    point: dict[str, Any] = {}
    for name in _parents_first(axes):
        if not axes[name].applies({n: decode(axes[n], v) for n, v in point.items()}):
            continue
        space = distribution(name, axes[name])
        if isinstance(space, CategoricalDistribution):
            point[name] = trial.suggest_categorical(name, space.choices)
        elif isinstance(space, IntDistribution):
            point[name] = trial.suggest_int(name, space.low, space.high, log=space.log)
        else:
            assert isinstance(space, FloatDistribution)
            point[name] = trial.suggest_float(name, space.low, space.high, log=space.log)
    return point


def _parents_first(axes: Mapping[str, Axis]) -> list[str]:
    """Conditions name axes that have none themselves."""
    return sorted(axes, key=lambda name: bool(axes[name].when))


def published_point(experiment: Experiment, component: Component) -> dict[str, Any]:
    """The published default as a point of the search space, encoded: always the first trial."""
    published = {
        "train.noise_std": 0.1,
        "train.loss": LOSSES[component][0] if LOSSES[component] else None,
        "model.time_input": False,
    }
    point = {}
    for name, axis in experiment.search.axes(component).items():
        value = _plain(published.get(name, _field(experiment, name)))
        if axis.choices is not None:
            value = value if fits(name, axis, value) else _plain(axis.choices[0])
        elif axis.low is not None and axis.high is not None:
            value = encode(name, axis, 0) if axis.zero and value == 0 else min(max(value, axis.low), axis.high)
        point[name] = value
    return restrict(experiment.search.axes(component), point)


def first_points(axes: Mapping[str, Axis], default: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """The default and `count - 1` points that cover the space evenly, where a few random ones may miss a choice.

    Choices are combined so that those used least so far come next, over all axes at once; ranges are cut
    into as many strata as there are points, one point in each (McKay et al. 1979).
    """
    rng = np.random.default_rng(seed)
    listed = {n: [_plain(c) for c in axis.choices] for n, axis in axes.items() if axis.choices is not None}
    combined = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    combined = [combined[i] for i in rng.permutation(len(combined))]
    ranges = {name: axis for name, axis in axes.items() if name not in listed}
    strata = {name: (rng.permutation(count - 1) + rng.random(count - 1)) / max(1, count - 1) for name in ranges}
    points = [dict(default)]
    for i in range(count - 1):
        choice = min(combined, key=lambda c: (_times(points, c), sum(_times(points, {n: c[n]}) for n in listed)))
        drawn = {name: _quantile(distribution(name, axis), float(strata[name][i])) for name, axis in ranges.items()}
        points.append(restrict(axes, {**choice, **drawn}))
    return points


def _times(points: Sequence[Mapping[str, Any]], choice: Mapping[str, Any]) -> int:
    """How many points make the choice."""
    return sum(all(point.get(name) == value for name, value in choice.items()) for point in points)


def _quantile(space: BaseDistribution, share: float) -> float | int:
    """The value below which `share` of a range lies, on its own scale."""
    assert isinstance(space, FloatDistribution | IntDistribution)
    low, high = (math.log(space.low), math.log(space.high)) if space.log else (space.low, space.high)
    value = low + share * (high - low)
    value = math.exp(value) if space.log else value
    return round(value) if isinstance(space, IntDistribution) else min(max(value, space.low), space.high)


def _field(experiment: Experiment, name: str) -> Any:
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part)
    return value
