"""The section of the report on the search of a stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from raypipe.config import Component, Search
from raypipe.report import figures
from raypipe.report.figures import Bar, Cost, Line, Point
from raypipe.report.tables import TRIALS, Table, known, make_table
from raypipe.search import finalists, records
from raypipe.search.default import is_default
from raypipe.search.early import left_out
from raypipe.search.records import Row
from raypipe.training.monitor import read_metrics
from raypipe.workspace.layout import Workspace


@dataclass(frozen=True)
class Figure:
    """A figure with its caption, which tells how many trials are shown and how many failed."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class StageView:
    """The contents of the section. None: there is no data for that part; table None: the stage has not run.

    left_out: what the stage has left out, if it ended before all its trials.
    """

    name: str
    counts: str
    left_out: str | None
    scatter: Figure | None
    front: Figure | None
    curves: Figure | None
    cost: Figure | None
    table: Table | None
    refits: Table | None


def stage(workspace: Workspace, rows: Sequence[Row], component: Component, search: Search) -> StageView:
    """Make the section of a stage. rows: rows of trials.parquet."""
    mine = [row for row in rows if row["stage"] == component]
    searched, refits = [r for r in mine if not r.get("refit")], [r for r in mine if r.get("refit")]
    last, last_refits = _last(searched), _last(refits)
    if not last and not last_refits:
        return StageView(component, "", None, None, None, None, None, None, None)
    return StageView(
        component,
        _counts(last, last_refits),
        left_out(workspace, component, search),
        _scatter(last, last_refits),
        _front(finalists.last_rungs(searched, component), last),
        _curves(workspace, component, searched, last),
        _cost(workspace, component, last),
        make_table(TRIALS, last),
        make_table([c for c in TRIALS if c.key != "status"], last_refits) if last_refits else None,
    )


def _last(rows: Sequence[Row]) -> list[Row]:
    """The row of each trial at its last rung, best first and failed ones last."""
    return sorted(records.last_rows(rows), key=lambda row: row["objective"] if _good(row) else math.inf)


def _good(row: Row) -> bool:
    return row["status"] != "failed" and known(row["objective"])


def _counts(last: Sequence[Row], refits: Sequence[Row]) -> str:
    """Text such as `8 trials: 3 finished, 4 stopped early, 1 failed; 6 refits`."""
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "unfinished"}
    counted = [(sum(row["status"] == status for row in last), word) for status, word in words.items()]
    listed = ", ".join(f"{count} {word}" for count, word in counted if count)
    return f"{_count(len(last), 'trial')}: {listed}" + (f"; {_count(len(refits), 'refit')}" if refits else "")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _failures(last: Sequence[Row], how: str) -> str:
    """`none failed`, or the number of failed trials and `how` the figure shows them."""
    failed = sum(row["status"] == "failed" for row in last)
    return f"{failed} failed: {how}" if failed else "none failed"


def _shown(count: int, last: Sequence[Row]) -> str:
    """Text such as `8 trials` or `7 of 8 trials`."""
    return ("" if count == len(last) else f"{count} of ") + _count(len(last), "trial")


def _scatter(last: Sequence[Row], refits: Sequence[Row]) -> Figure | None:
    """Objective against noise level. A failed trial has no objective, and is drawn at the top edge."""
    points, again = ([p for p in map(_point, rows) if p is not None] for rows in (last, refits))
    if not points and not again:
        return None
    shown = _shown(len(points), last) + (f" and {_count(len(again), 'refit')}" if again else "")
    failed = _failures(last, "crosses at the top edge")
    caption = f"Objective against noise level, by loss. {shown}; {failed}."
    return Figure(Markup(figures.search([*points, *again])), caption)


def _point(row: Row) -> Point | None:
    if row["status"] == "failed":
        return Point(row["noise_std"] or 0.0, math.nan, 0.0, _loss(row), "failed")
    if not _good(row):
        return None
    kind = "refit" if row.get("refit") else "finished" if row["status"] == "finished" else "stopped"
    se = row["objective_se"] if known(row["objective_se"]) else 0.0
    note = "default" if is_default(row["trial"]) and not row.get("refit") else ""
    return Point(row["noise_std"] or 0.0, row["objective"], se, _loss(row), kind, note)


def _front(ranked: Sequence[finalists.Trial], last: Sequence[Row]) -> Figure | None:
    """Objective against network evaluations per frame; None if all trials have equal cost."""
    ranked = [trial for trial in ranked if known(trial.row.get("nfe_per_frame"))]
    if len({trial.row["nfe_per_frame"] for trial in ranked}) < 2:
        return None
    best = finalists.pareto_front(ranked)
    points = [Cost(t.row["nfe_per_frame"], t.objective, _loss(t.row), t.name, t in best) for t in ranked]
    failed = _failures(last, "not shown")
    text = f"The line joins the Pareto-optimal trials. {_shown(len(points), last)}; {failed}."
    return Figure(Markup(figures.front(points)), text)


def _loss(row: Row) -> str:
    return row["loss"] or "denoising"


def _curves(workspace: Workspace, component: Component, rows: Sequence[Row], last: Sequence[Row]) -> Figure | None:
    """Training loss against step, and objective at the rungs. Colors: loss function; fainter: higher noise level.

    A failed trial is drawn up to its last report.
    """
    colors = figures.colors_of([_loss(row) for row in last])
    levels = sorted({row["noise_std"] or 0.0 for row in last})
    left: list[Line] = []
    right: list[Line] = []
    for trial in last:
        loss = _loss(trial)
        strength = 1 - 0.65 * levels.index(trial["noise_std"] or 0.0) / max(1, len(levels) - 1)
        failed = trial["status"] == "failed"
        metrics = read_metrics(workspace.run(component, trial["trial"]))
        logged = [(r["step"], r["loss"]) for r in metrics if known(r.get("loss"))]
        passed = [r for r in rows if r["trial"] == trial["trial"] and known(r["objective"])]
        rungs = sorted((r["step"], r["objective"]) for r in passed)
        for points, lines in ((logged, left), (rungs, right)):
            if points:
                x, y = zip(*points, strict=True)
                lines.append(Line(loss, x, y, colors[loss], strength, failed=failed))
    if not left and not right:
        return None
    shown = f"Losses of {_shown(len(left), last)}, scores of {_shown(len(right), last)}"
    failures = _failures(last, "a cross marks the end of the curve")
    return Figure(Markup(figures.curves(left, right)), f"{shown}; {failures}.")


def _cost(workspace: Workspace, component: Component, last: Sequence[Row]) -> Figure | None:
    """Importance of the search axes, stored at the end of the search, and the seconds of each trial."""
    colors = figures.colors_of([_loss(row) for row in last])
    spent = [
        Bar(row["trial"], row["seconds"] if known(row.get("seconds")) else 0.0, colors[_loss(row)], quiet=failed)
        for row in sorted(last, key=lambda row: str(row["trial"]))
        if (failed := row["status"] == "failed") or known(row.get("seconds"))
    ]
    importances = [
        Bar(name, share) for name, share in records.read_importances(workspace.importances(component)).items()
    ]
    if not spent and not importances:
        return None
    scored = _shown(sum(map(_good, last)), last)
    text = (
        f"Importance of each search axis (PED-ANOVA), from {scored} with a score. "
        f"Cost of {_shown(len(spent), last)}; {_failures(last, 'a pale bar with a cross')}."
    )
    return Figure(Markup(figures.bars(importances, spent)), text)
