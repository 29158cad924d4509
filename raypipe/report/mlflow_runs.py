"""The trainings of a search, and a single training, as runs of MLflow: read from the files that they write anyway."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raypipe import config
from raypipe.config import Component, Experiment
from raypipe.report.state import Overview, read_overview
from raypipe.search import records
from raypipe.search.configured import parse_refit_name
from raypipe.search.default import DEFAULT_DIFFUSION, default_values
from raypipe.training.monitor import METRICS, OBJECTIVE
from raypipe.workspace.layout import Workspace

SEARCH = "search"
"""Key of the parent run of a search."""
FINAL = "final_objective"
"""Metric with the objective of a trial at its last rung, once it has ended, and that of a refit."""

Read = Callable[[Path], list[dict[str, Any]]]


@dataclass(frozen=True)
class Run:
    """What MLflow shall know of a run.

    key: identifies the run in the experiment's folder. state: `running`, `finished`, `stopped` (by the scheduler),
    `failed` or `interrupted`. parent: key of its parent run. metrics: by name, pairs of step and value, by step.
    """

    key: str
    name: str
    state: str
    parent: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)


def search_runs(workspace: Workspace, read: Read, outcome: str | None) -> list[Run]:
    """The runs of a search, its parent run first; none before its config is stored.

    read: reads the log of a training. outcome: state in which the command has ended; None while it runs.
    """
    if not (workspace.folder / "config.yaml").is_file():
        return []
    overview = read_overview(workspace, ended=outcome is not None, read=read)
    parent = Run(SEARCH, workspace.name, outcome or "running")
    trials = [_trial(overview, row, read) for row in overview.rows if not row["refit"]]
    return [parent, *_autoencoder(overview, read, outcome), *trials, *_refits(overview, read, outcome)]


def training_run(workspace: Workspace, component: Component, name: str, key: str, experiment: Experiment) -> Run:
    """The run of a single training, without its metrics and as `running`; its params are its settings.

    key: of the training, another one if it is trained again from an earlier step.
    """
    settings = config.to_dict(experiment)
    params = _flat({section: settings[section] for section in ("model", "train", "sde")})
    return Run(key, f"{workspace.name}/{name}", "running", tags={"raypipe.stage": component}, params=params)


def logged_metrics(logged: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The metrics of a training. logged: rows of its metrics.jsonl."""
    names = dict.fromkeys(name for row in logged for name in row if name != "step")
    return {name: [(row["step"], float(row[name])) for row in logged if name in row] for name in names}


def _trial(overview: Overview, row: records.Row, read: Read) -> Run:
    stage, name, state = row["stage"], row["trial"], row["status"]
    metrics = logged_metrics(read(overview.workspace.run(stage, name))) | _objectives(overview, stage, name, state)
    tags = {"raypipe.stage": stage, "raypipe.kind": "trial"}
    if row.get("error"):
        tags["raypipe.error"] = str(row["error"])
    return Run(f"{stage}/{name}", name, state, SEARCH, tags, json.loads(row.get("values") or "{}"), metrics)


def _objectives(overview: Overview, stage: str, name: str, state: str) -> dict[str, list[tuple[int, float]]]:
    mine = [row for row in overview.rungs if (row["stage"], row["trial"]) == (stage, name)]
    scored = sorted((row["step"], row["objective"]) for row in mine if records.is_finite(row["objective"]))
    if not scored:
        return {}
    return {OBJECTIVE: scored} | ({FINAL: scored[-1:]} if state in ("finished", "stopped") else {})


def _autoencoder(overview: Overview, read: Read, outcome: str | None) -> Iterator[Run]:
    folder = overview.workspace.autoencoder
    if logged := read(folder):
        params = _flat({"autoencoder": config.to_dict(overview.experiment.autoencoder)})
        tags = {"raypipe.stage": "autoencoder"}
        yield Run("autoencoder", folder.name, _state(folder, outcome), SEARCH, tags, params, logged_metrics(logged))


def _refits(overview: Overview, read: Read, outcome: str | None) -> Iterator[Run]:
    """The finalists that are trained again, and the rivals: each with the values of its trial, and its seed."""
    workspace, experiment = overview.workspace, overview.experiment
    values = {(row["stage"], row["trial"]): json.loads(row.get("values") or "{}") for row in overview.rows}
    for stage in config.COMPONENTS:
        for log in sorted((workspace.folder / stage).glob(f"*-s[0-9]*.log/{METRICS}")):
            folder = workspace.run(stage, log.parent.stem)
            if not re.fullmatch(r".+-s\d+", folder.name):
                continue
            trial, seed = parse_refit_name(folder.name)
            if (noise := trial.partition("-")[0]) in experiment.rivals:
                chosen: Mapping[str, Any] = {"sde.noise": noise}
            elif trial == DEFAULT_DIFFUSION:
                chosen = default_values(stage)
            elif (stage, trial) in values:
                chosen = values[stage, trial]
            else:
                continue  # of raypipe.train
            params = {**chosen, "train.random_seed": experiment.train.random_seed + seed}
            state, tags = _state(folder, outcome), {"raypipe.stage": stage, "raypipe.kind": "refit"}
            metrics = logged_metrics(read(folder)) | _objectives(overview, stage, folder.name, state)
            yield Run(f"{stage}/{folder.name}", folder.name, state, SEARCH, tags, params, metrics)


def _state(folder: Path, outcome: str | None) -> str:
    """State of a training that is no trial. folder: of its model, which is written at the end."""
    if (folder / "config.json").is_file():
        return "finished"
    return {None: "running", "interrupted": "interrupted"}.get(outcome, "failed")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of nested sections by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
