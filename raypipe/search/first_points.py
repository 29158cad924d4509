"""The points that a search starts with: the default, an even cover of the space, and points of an earlier search."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from raypipe import config
from raypipe.config import Axis, Component, Experiment
from raypipe.search import finalists, records
from raypipe.search.default import default_values
from raypipe.search.space import _plain, applying, distribution, encode, fits, restrict


def best_points(
    folder: Path, component: Component, axes: Mapping[str, Axis], default: Mapping[str, Any], count: int
) -> list[dict[str, Any]]:
    """The `count` best points, or fewer, of the search in `folder`, encoded, best first.

    Points outside the space of `axes` are omitted, as is the default, which is tried anyway. The flow that a diffusion
    was trained on is a model of the earlier search, so it is replaced by the flow of `default`.
    """
    rows = [row for row in records.read_rows(folder / "trials.parquet") if not row["refit"]]
    points: list[dict[str, Any]] = []
    for trial in finalists.last_rungs(rows, component):
        values = {**json.loads(trial.row["values"]), **{k: v for k, v in default.items() if k == "train.flow"}}
        point = restrict(
            axes, {name: encode(name, axis, values[name]) for name, axis in axes.items() if name in values}
        )
        inside = set(point) == set(applying(axes, point)) and all(fits(n, axes[n], value) for n, value in point.items())
        if inside and point != default and point not in points:
            points.append(point)
    return points[:count]


def default_point(experiment: Experiment, component: Component) -> dict[str, Any]:
    """The default as an encoded point of the search space, which is always the first trial.

    A value outside its axis is replaced by the nearest end of the range, or by the first choice.
    """
    values, axes = default_values(component), experiment.search.stages[component].axes
    point = {}
    for name, axis in axes.items():
        value = _plain(values.get(name, config.field_value(experiment, name)))
        if axis.choices is not None:
            value = value if fits(name, axis, value) else _plain(axis.choices[0])
        elif axis.low is not None and axis.high is not None:
            value = encode(name, axis, 0) if axis.zero and value == 0 else min(max(value, axis.low), axis.high)
        point[name] = value
    return restrict(axes, point)


def first_points(axes: Mapping[str, Axis], default: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Any]]:
    """The default and `count - 1` points that cover the space evenly; random points might miss a choice.

    Each point takes the combination of choices used least so far. Ranges are sampled as a Latin hypercube: every axis
    is divided into `count - 1` strata, with one point in each (McKay et al. 1979).
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
    """Number of points that have all values of `choice`."""
    return sum(all(point.get(name) == value for name, value in choice.items()) for point in points)


def _quantile(space: BaseDistribution, share: float) -> float | int:
    """The quantile of a range at probability `share`, on the linear or logarithmic scale of the axis."""
    assert isinstance(space, FloatDistribution | IntDistribution)
    low, high = (math.log(space.low), math.log(space.high)) if space.log else (space.low, space.high)
    value = low + share * (high - low)
    value = math.exp(value) if space.log else value
    return round(value) if isinstance(space, IntDistribution) else min(max(value, space.low), space.high)
