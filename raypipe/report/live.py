"""What `report.html` shows of a search while it runs, and after it has ended: made of its `Overview`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raypipe.config import Axis, Component
from raypipe.report import plots
from raypipe.report.outlook import reasons
from raypipe.report.plots import Curve, Mark
from raypipe.report.state import Overview
from raypipe.report.tables import TRIALS, Column, Table, known, make_table, short, text
from raypipe.search.records import Row
from raypipe.training.monitor import METRICS, log_folder, read_metrics

POINTS = 60
"""Largest number of points of a curve."""
SERIES = 6
"""Number of colors of the page."""
COLUMNS = [
    *TRIALS[:2],
    Column("reason", "why it failed or was stopped", text, numeric=False),
    *(
        c
        for c in TRIALS
        if c.key in ("step", "objective", "difference", "noise_std", "loss", "learning_rate", "seconds")
    ),
    Column("log", "last line of its log", text, numeric=False),
]
"""The columns of the table of trials; the plots show the other axes, and the report has all."""
Read = Callable[[Path], list[dict[str, Any]]]


@dataclass
class Logs:
    """Reads the logs of trainings, each again only once it has changed."""

    _kept: dict[Path, tuple[tuple[int, int], list[dict[str, Any]]]] = field(default_factory=dict)

    def read(self, folder: Path) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl of a training, see `read_metrics`. folder: of its model."""
        try:
            stat = (log_folder(folder) / METRICS).stat()
        except FileNotFoundError:
            return []
        key = (stat.st_mtime_ns, stat.st_size)
        if folder not in self._kept or self._kept[folder][0] != key:
            self._kept[folder] = (key, read_metrics(folder))
        return self._kept[folder][1]


@dataclass(frozen=True)
class LiveStage:
    """The section of a stage. legend: losses with the numbers of their colors. open: whether the table is unfolded."""

    name: Component
    legend: Mapping[str, int]
    plots: Sequence[Markup]
    table: Table
    open: bool


def live_stages(overview: Overview, read: Read) -> list[LiveStage]:
    """The sections of the stages that have begun. read: reads the log of a training."""
    why = reasons(overview)
    begun = [stage for stage in overview.stages if any(row["stage"] == stage.component for row in overview.rows)]
    return [_stage(overview, stage.component, read, why, stage is begun[-1]) for stage in begun]


def _stage(overview: Overview, component: Component, read: Read, why: Mapping[str, str], last: bool) -> LiveStage:
    rows = [row for row in overview.rows if row["stage"] == component]
    trials = [row for row in rows if not row["refit"]]
    colors = {loss: i % SERIES + 1 for i, loss in enumerate(dict.fromkeys(map(_loss, rows)))}
    logs = {row["trial"]: read(overview.workspace.run(component, row["trial"])) for row in rows}
    listed = [
        row
        | {
            "status": "retrained" if row["refit"] else row["status"],
            "log": _last_line(logs[row["trial"]]),
            "reason": why.get(row["trial"], ""),
        }
        for row in rows
    ]
    return LiveStage(
        component,
        colors,
        [*_scatters(overview, component, trials, colors), *_curves(overview, component, rows, logs, colors)],
        make_table(COLUMNS, listed),
        last,
    )


def _loss(row: Row) -> str:
    return str(row.get("loss") or "denoising")


def _scatters(
    overview: Overview, component: Component, trials: Sequence[Row], colors: Mapping[str, int]
) -> list[Markup]:
    """Objective against each axis of the space that has more than one value."""
    axes: dict[str, Axis | None] = dict(overview.experiment.search.stages[component].axes)
    values = {row["trial"]: json.loads(row["values"]) if row["values"] else {} for row in trials}
    axes |= {name: None for each in values.values() for name in each if name not in axes}
    found = []
    for name, axis in axes.items():
        marks = [
            Mark(
                values[row["trial"]][name],
                row["objective"] if known(row["objective"]) and row["status"] != "failed" else None,
                row["status"],
                colors[_loss(row)],
                row["trial"],
            )
            for row in trials
            if name in values[row["trial"]] and (known(row["objective"]) or row["status"] == "failed")
        ]
        choices = axis.choices if axis is not None else sorted({str(mark.x) for mark in marks})
        numbers = all(known(mark.x) and not isinstance(mark.x, bool) for mark in marks)
        if not marks or (choices is not None and len(choices) < 2):
            continue
        if choices is None and not numbers:
            choices = []
        found.append(plots.scatter(name, marks, log=axis is not None and axis.log, choices=choices))
    return found


def _curves(
    overview: Overview,
    component: Component,
    rows: Sequence[Row],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    colors: Mapping[str, int],
) -> list[Markup]:
    """The objective at the rungs, and the training loss, against the training step."""
    scored, trained = [], []
    passed: dict[str, list[Row]] = {}
    for rung in overview.rungs:
        if rung["stage"] == component and known(rung["objective"]):
            passed.setdefault(rung["trial"], []).append(rung)
    for row in rows:
        name, color = row["trial"], colors[_loss(row)]
        rungs = sorted(passed.get(name, ()), key=lambda rung: rung["step"])
        if rungs:
            x, y = [rung["step"] for rung in rungs], [rung["objective"] for rung in rungs]
            scored.append(Curve(x, y, color, name, marked=True))
        logged = [(r["step"], r["loss"]) for r in logs[name] if known(r.get("loss"))]
        if logged:
            thin = logged[:: -(-len(logged) // POINTS)]
            trained.append(Curve([step for step, _ in thin], [loss for _, loss in thin], color, name))
    found = [plots.curves("CRPS ratio at the rungs, by training step", scored)] if scored else []
    return found + ([plots.curves("training loss, by training step", trained, log=True)] if trained else [])


def _last_line(log: Sequence[Mapping[str, Any]]) -> str:
    """The last row of a training's log in words; empty if there is none."""
    if not log:
        return ""
    words = {"grad_norm": "gradient", "windows_per_second": "windows/s"}
    skipped = ("learning_rate", "validation")
    return ", ".join(
        f"{words.get(name, name)} {value if name == 'step' else short(value)}"
        for name, value in log[-1].items()
        if name not in skipped
    )
