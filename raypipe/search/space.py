"""The search space as Optuna distributions.

An encoded point holds values as Optuna stores them, by axis name: a list as JSON, and 0 on a log axis as a value below
the range. `decode` and `encode` convert between these and config values.
"""

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from raypipe import config
from raypipe.config import Axis


def distribution(name: str, axis: Axis) -> BaseDistribution:
    """The Optuna distribution of an axis. `axis.zero` extends a log range downward by 1/7 of its length, for 0."""
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
    """A choice as the study stores it: a list, such as model.logit_range, as JSON."""
    return json.dumps(choice) if isinstance(choice, list | tuple) else choice


def decode(axis: Axis, value: Any) -> Any:
    """The config value of an encoded value; with `axis.zero`, a value below the range means 0."""
    if axis.choices is not None:
        return next((choice for choice in axis.choices if _plain(choice) == value), value)
    return 0.0 if axis.zero and axis.low is not None and value < axis.low else value


def encode(name: str, axis: Axis, value: Any) -> Any:
    """The encoded form of a config value; the inverse of `decode`."""
    space: Any = distribution(name, axis)
    return space.low if axis.zero and value == 0 else _plain(value)


def fits(name: str, axis: Axis, value: Any) -> bool:
    """Whether the axis contains an encoded value."""
    if axis.choices is not None:
        return any(value is choice or value == choice for choice in map(_plain, axis.choices))
    space: Any = distribution(name, axis)
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(space.low <= value <= space.high)


def applying(axes: Mapping[str, Axis], point: Mapping[str, Any]) -> list[str]:
    """Names of the axes whose conditions hold at an encoded point."""
    values = {name: decode(axes[name], value) for name, value in point.items() if name in axes}
    return [name for name in _parents_first(axes) if axes[name].applies(values)]


def restrict(axes: Mapping[str, Axis], point: Mapping[str, Any]) -> dict[str, Any]:
    """An encoded point without the values of axes whose conditions do not hold."""
    return {name: point[name] for name in applying(axes, point) if name in point}


def suggest(trial: optuna.Trial, axes: Mapping[str, Axis]) -> dict[str, Any]:
    """Ask an Optuna trial for a value of every axis whose conditions hold; returns the encoded point."""
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
    """Unconditional axes first. Conditions refer only to unconditional axes."""
    return sorted(axes, key=lambda name: bool(axes[name].when))
