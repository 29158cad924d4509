"""The best points of another search, for one that begins."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypipe import records
from raypipe.config import Axis, Component
from raypipe.space import applying, encode, fits, restrict


def best_points(
    folder: Path, component: Component, axes: Mapping[str, Axis], default: Mapping[str, Any], count: int
) -> list[dict[str, Any]]:
    """Up to `count` points of this space that scored best in the search of `folder`, best first.

    Points outside this space are left out, and the default, which is tried anyway. A flow that a diffusion was
    trained on is a model of the other search: the default's takes its place.
    """
    rows = [row for row in records.read_rows(folder / "trials.parquet") if not row["refit"]]
    points: list[dict[str, Any]] = []
    for trial in records.last_rungs(rows, component):
        values = {**json.loads(trial.row["values"]), **{k: v for k, v in default.items() if k == "train.flow"}}
        point = restrict(
            axes, {name: encode(name, axis, values[name]) for name, axis in axes.items() if name in values}
        )
        known = set(point) == set(applying(axes, point)) and all(fits(n, axes[n], value) for n, value in point.items())
        if known and point != default and point not in points:
            points.append(point)
    return points[:count]
