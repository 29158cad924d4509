"""The config of each training of a search: of its trials, and of the finalists that are retrained. Without Ray."""

import json
import re
from collections.abc import Mapping
from typing import Any

from raypipe import config
from raypipe.config import Component, Experiment
from raypipe.search import records
from raypipe.search.default import DEFAULT_DIFFUSION, default_values
from raypipe.search.finalists import published, read_finalists
from raypipe.workspace.layout import Workspace


def trial_config(experiment: Experiment, component: Component, values: Mapping[str, Any]) -> Experiment:
    """The config of a trial. experiment: that of the search. values: of the trial, by dotted name."""
    steps = experiment.search.stages[component].steps
    base = {"train.component": component, **_length(steps), "train.loss": None}
    return config.replace(experiment, **{**base, **values})


def refit_config(experiment: Experiment, component: Component, values: Mapping[str, Any], seed: int) -> Experiment:
    """The config of a finalist that is retrained. values: see `finalist_values`. seed: its number, from 0."""
    length = _length(experiment.search.stages[component].refit_steps)
    again = {
        "train.random_seed": experiment.train.random_seed + seed,
        "train.num_workers": experiment.train.num_workers,
    }
    return config.replace(trial_config(experiment, component, {**values, **length}), **again)


def _length(steps: int) -> dict[str, Any]:
    return {"train.steps": steps, "train.warmup_steps": max(1, steps // 20)}


def finalist_values(workspace: Workspace, component: Component, trial: str) -> dict[str, Any] | None:
    """The config fields of a trial at its last rung, by dotted name; None if it has no row in trials.parquet.

    The default diffusion is no trial; it is trained on the default flow.
    """
    if trial == DEFAULT_DIFFUSION:
        return {**default_values(component), "train.flow": published(read_finalists(workspace, "flow")).model}
    rows = [r for r in records.read_rows(workspace.trials) if (r["trial"], r["stage"]) == (trial, component)]
    return dict(json.loads(max(rows, key=lambda row: row["step"])["values"])) if rows else None


def refit_name(trial: str, seed: int) -> str:
    """Name of a finalist that is retrained with a seed, such as `flow-03-s0`."""
    return f"{trial}-s{seed}"


def parse_refit_name(name: str) -> tuple[str, int]:
    """The inverse of `refit_name`."""
    match = re.fullmatch(r"(.+)-s(\d+)", name)
    assert match is not None, name
    return match[1], int(match[2])
