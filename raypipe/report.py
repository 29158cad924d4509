"""evaluation/report.html: what a search found, on one page that needs no other file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raypipe import film, plots, records
from raypipe.config import COMPONENTS, Component
from raypipe.monitor import read_metrics
from raypipe.plots import Bar, Line, Point
from raypipe.records import Row
from raypipe.workspace import Workspace, write_atomic

TEMPLATE = "report.html.jinja"
SAMPLES = 4
SHOWN_ROWS = 12
"""Rows of the validation table above the fold."""
BASELINES = {
    "persistence": "persistence",
    "climatology": "climatology",
    "flow": "flow alone",
    "published": "published default",
}
RIVALS = {"climatology": "climatology", "flow": "the flow alone", "published": "the published default"}
"""The baselines of the headline, as they read in a sentence."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its key in a row (`se` may name another), how it reads, and what it means."""

    key: str
    label: str
    show: Callable[[Any], str]
    meaning: str = ""
    se: str | None = None
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """header, and rows of cells; `strong` and `quiet` hold the numbers of rows that are set apart."""

    columns: list[Column]
    rows: list[list[str]]
    strong: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)


def number(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:.{digits}f}".replace("-", "−") if known(value) else "–"


def short(value: Any) -> str:
    """A number to three digits."""
    return f"{value:.3g}".replace("-", "−") if known(value) else "–"


def text(value: Any) -> str:
    return "–" if value is None else str(value)


def known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def milliseconds(value: Any) -> str:
    return f"{1000 * value:.3g}" if known(value) else "–"


SCORES = [
    Column("name", "forecast", text, numeric=False),
    Column("alpha", "α", short, "denoising magnitude"),
    Column("beta", "β", short, "diffusion magnitude"),
    Column("steps", "steps", short, "integration steps a frame"),
    Column("solver", "solver", text, numeric=False),
    Column("crps_ratio", "CRPS ratio", number(3), "CRPS over that of persistence, in latents: 0 is perfect",
           "crps_ratio_se"),
    Column("difference", "Δ published", number(3), "paired difference from the published default; below 0 is better",
           "difference_se"),
    Column("crps_ratio_pixels", "in pixels", number(3), "CRPS ratio of decoded frames"),
    Column("psnr", "PSNR", number(2), "dB"),
    Column("ssim", "SSIM", number(3), "structural similarity"),
    Column("spread_skill", "spread/skill", number(2), "1: the ensemble is as wide as its mean is wrong"),
    Column("nfe_per_frame", "NFE", short, "network evaluations a frame"),
    Column("seconds_per_frame", "ms/frame", milliseconds, "of one forecast"),
]  # fmt: skip
TRIALS = [
    Column("trial", "trial", text, numeric=False),
    Column("status", "status", text, numeric=False),
    Column("step", "step", short),
    Column("objective", "CRPS ratio", number(3), "on validation", "objective_se"),
    Column("difference", "Δ published", number(3), "paired difference from the published default", "difference_se"),
    Column("noise_std", "s", short, "noise level"),
    Column("loss", "loss", text, numeric=False),
    Column("learning_rate", "learning rate", short),
    Column("time_input", "sees u", lambda value: "–" if value is None else "yes" if value else "no", numeric=False),
    Column("flow", "flow", text, "the flow that it builds on", numeric=False),
    Column("magnitude", "magnitude", short, "multiplier or beta, fitted on training clips"),
    Column("spread_skill", "spread/skill", number(2)),
    Column("seconds", "seconds", number(0)),
    Column("error", "error", text, numeric=False),
]
_NOT_SHOWN = {"combination", "flow", "denoiser", "diffusion", "split", "baseline", "chosen", "fps"}


def write_report(workspace: Workspace) -> Path:
    """Write `evaluation/report.html` of an experiment from what is there of it; gives its path.

    Parts that have not run are left out with a sentence. Raises ConfigError if the folder is no experiment, or
    if a table of it cannot be read.
    """
    experiment = workspace.experiment()
    combinations = [
        dict(row, name=describe(row)) for row in records.read_rows(workspace.evaluation / "combinations.parquet")
    ]
    trials = records.read_rows(workspace.trials)
    manifest = workspace.folder / "manifest.json"
    page = _environment().get_template(TEMPLATE).render(
        title=workspace.name,
        dataset=experiment.dataset.name,
        headline=headline(combinations),
        test=score_table([row for row in combinations if row["split"] == "test"]),
        validation=score_table([row for row in combinations if row["split"] == "validation"]),
        shown=SHOWN_ROWS,
        horizon=horizon_plot(combinations),
        samples=[film.read_sample(path) for path in sorted((workspace.folder / "samples").glob("*.npz"))[:SAMPLES]],
        stages=[stage(workspace, trials, component) for component in COMPONENTS],
        ran=flat(json.loads(manifest.read_text())) if manifest.is_file() else [],
        config=(workspace.folder / "config.yaml").read_text(),
    )  # fmt: skip
    path = workspace.evaluation / "report.html"
    write_atomic(path, page)
    return path


def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def describe(row: Mapping[str, Any]) -> str:
    """What a row of the combinations is called on the page."""
    if row["baseline"] is not None:
        return BASELINES.get(row["baseline"], str(row["baseline"]))
    diffusion = "constant diffusion" if row["diffusion"] == "constant" else row["diffusion"]
    return " + ".join(str(name) for name in (row["flow"], row["denoiser"], diffusion) if name) or "–"


@dataclass(frozen=True)
class Versus:
    """The chosen combination against a baseline: share of the baseline's score that it saves."""

    name: str
    score: str
    saved: float


@dataclass(frozen=True)
class Headline:
    """The result in a few words. difference: the paired one to the published default."""

    name: str
    split: str
    score: str
    se: str
    difference: str | None
    difference_se: str
    steps: str
    nfe: str
    alpha: str
    beta: str
    versus: list[Versus]


def headline(rows: Sequence[Row]) -> Headline | None:
    """The chosen combination on test, or on validation if test has not been touched; None before that."""
    for split in ("test", "validation"):
        chosen = _chosen(rows, split)
        if chosen is None:
            continue
        others = {r["baseline"]: r["crps_ratio"] for r in rows if r["split"] == split and known(r["crps_ratio"])}
        versus = [
            Versus(name, number(3)(others[key]), 1 - chosen["crps_ratio"] / others[key])
            for key, name in RIVALS.items()
            if others.get(key) and chosen["baseline"] != key
        ]
        gap = chosen.get("difference")
        return Headline(
            chosen["name"],
            split,
            number(3)(chosen["crps_ratio"]),
            number(3)(chosen.get("crps_ratio_se")),
            number(3)(gap) if known(gap) and chosen["baseline"] != "published" else None,
            number(3)(chosen.get("difference_se")),
            short(chosen.get("steps")),
            short(chosen.get("nfe_per_frame")),
            short(chosen.get("alpha")),
            short(chosen.get("beta")),
            versus,
        )
    return None


def _chosen(rows: Sequence[Row], split: str) -> Row | None:
    return next((r for r in rows if r["split"] == split and r["chosen"] and known(r["crps_ratio"])), None)


def score_table(rows: Sequence[Row]) -> Table | None:
    """Combinations and baselines, best first, the chosen ones strong and the baselines quiet; None without rows."""
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: row["crps_ratio"] if known(row["crps_ratio"]) else math.inf)
    listed = {name for column in SCORES for name in (column.key, column.se)} | _NOT_SHOWN
    more = [
        Column(key, key.replace("_", " "), short)
        for key in ordered[0]
        if key not in listed and not key.endswith("_se") and any(known(row[key]) for row in ordered)
    ]
    table = make_table([*SCORES, *more], ordered)
    strong = {i for i, row in enumerate(ordered) if row["chosen"]}
    quiet = {i for i, row in enumerate(ordered) if row["baseline"] is not None} - strong
    return Table(table.columns, table.rows, strong, quiet)


def make_table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """The columns that say anything in any row."""
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return Table(used, [[_cell(column, row) for column in used] for row in rows])


def _cell(column: Column, row: Row) -> str:
    shown = column.show(row.get(column.key))
    error = row.get(column.se) if column.se else None
    return f"{shown} ± {column.show(error)}" if known(error) and shown != "–" else shown


def horizon_plot(rows: Sequence[Row]) -> Markup | None:
    """The score at every step of the horizon: the chosen combination and the baselines."""
    for split in ("test", "validation"):
        scored = [r for r in rows if r["split"] == split and r.get("crps_ratio_by_step") is not None]
        shown = [r for r in scored if r["chosen"]][:1] + [
            r for r in scored if r["baseline"] not in (None, "persistence") and not r["chosen"]
        ]
        if shown:
            lines = [
                Line(
                    "chosen" if row["chosen"] else row["name"],
                    (),
                    [math.nan if y is None else y for y in row["crps_ratio_by_step"]],
                    plots.SERIES[i % len(plots.SERIES)],
                    bold=bool(row["chosen"]),
                    dashed=not row["chosen"],
                )
                for i, row in enumerate(shown)
            ]
            return Markup(plots.by_step(lines))
    return None


@dataclass(frozen=True)
class StageView:
    """What the page shows of a stage; None where nothing of it has run."""

    name: str
    counts: str
    scatter: Markup | None
    curves: Markup | None
    cost: Markup | None
    table: Table | None
    refits: Table | None


def stage(workspace: Workspace, rows: Sequence[Row], component: Component) -> StageView:
    """The search of one stage: its trials at their last rung, and their curves."""
    mine = [row for row in rows if row["stage"] == component]
    searched, refits = [r for r in mine if not r.get("refit")], [r for r in mine if r.get("refit")]
    last, last_refits = _last(searched), _last(refits)
    if not last and not last_refits:
        return StageView(component, "", None, None, None, None, None)
    points = [p for p in map(_point, [*last, *last_refits]) if p is not None]
    left, right = _curves(workspace, component, searched, last)
    return StageView(
        component,
        _counts(last, last_refits),
        Markup(plots.search(points)) if points else None,
        Markup(plots.curves(left, right)) if left or right else None,
        _cost(workspace, component, last),
        make_table(TRIALS, last),
        make_table([c for c in TRIALS if c.key != "status"], last_refits) if last_refits else None,
    )


def _last(rows: Sequence[Row]) -> list[Row]:
    """Every trial at its last rung, best first and failed ones last."""
    last: dict[str, Row] = {}
    for row in rows:
        if row["trial"] not in last or row["step"] >= last[row["trial"]]["step"]:
            last[row["trial"]] = row
    return sorted(last.values(), key=lambda row: row["objective"] if _good(row) else math.inf)


def _good(row: Row) -> bool:
    return row["status"] != "failed" and known(row["objective"])


def _counts(last: Sequence[Row], refits: Sequence[Row]) -> str:
    """`8 trials: 3 finished, 4 stopped early, 1 failed; 6 refits`."""
    words = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "running": "unfinished"}
    counted = [(sum(row["status"] == status for row in last), word) for status, word in words.items()]
    told = ", ".join(f"{count} {word}" for count, word in counted if count)
    return f"{_count(len(last), 'trial')}: {told}" + (f"; {_count(len(refits), 'refit')}" if refits else "")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("s" if count != 1 else "")


def _point(row: Row) -> Point | None:
    if not _good(row):
        return None
    kind = "refit" if row.get("refit") else "finished" if row["status"] == "finished" else "stopped"
    published = not row.get("refit") and row["trial"].endswith("-00")
    se = row["objective_se"] if known(row["objective_se"]) else 0.0
    note = "published" if published else ""
    return Point(row["noise_std"] or 0.0, row["objective"], se, _loss(row), kind, note)


def _loss(row: Row) -> str:
    return row["loss"] or "denoising"


def _curves(
    workspace: Workspace, component: Component, rows: Sequence[Row], last: Sequence[Row]
) -> tuple[list[Line], list[Line]]:
    """Loss over steps and objective over rungs, coloured by loss choice, fainter with more noise."""
    colors = plots.colors_of([_loss(row) for row in last])
    levels = sorted({row["noise_std"] or 0.0 for row in last})
    left, right = [], []
    for trial in last:
        loss = _loss(trial)
        strength = 1 - 0.65 * levels.index(trial["noise_std"] or 0.0) / max(1, len(levels) - 1)
        logged = [r for r in read_metrics(workspace.run(component, trial["trial"])) if known(r.get("loss"))]
        if logged:
            left.append(Line(loss, [r["step"] for r in logged], [r["loss"] for r in logged], colors[loss], strength))
        rungs = sorted((r["step"], r["objective"]) for r in rows if r["trial"] == trial["trial"] and _good(r))
        if rungs:
            right.append(Line(loss, [s for s, _ in rungs], [y for _, y in rungs], colors[loss], strength))
    return left, right


def _cost(workspace: Workspace, component: Component, last: Sequence[Row]) -> Markup | None:
    """What mattered, as the search found when it ended, and the seconds of each trial, failed ones too."""
    colors = plots.colors_of([_loss(row) for row in last])
    spent = [
        Bar(row["trial"], row["seconds"], colors[_loss(row)], quiet=row["status"] == "failed")
        for row in sorted(last, key=lambda row: str(row["trial"]))
        if known(row.get("seconds"))
    ]
    mattered = [Bar(name, share) for name, share in records.read_importances(workspace.importances(component)).items()]
    return Markup(plots.bars(mattered, spent)) if spent or mattered else None


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of a nested mapping by dotted name."""
    leaves: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += flat(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", text(value)))
    return leaves
