"""evaluation/report.html: what a search found, on one page that needs no other file."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raypipe import plots
from raypipe.common.files import write_atomic
from raypipe.config import COMPONENTS, Component
from raypipe.forecast import film
from raypipe.plots import Bar, Cost, Line, Point
from raypipe.search import finalists, records
from raypipe.search.records import Row
from raypipe.training.monitor import read_metrics
from raypipe.workspace.layout import Workspace

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
IN_WORDS = {
    "persistence": "repeating the last frame",
    "climatology": "climatology",
    "flow": "the flow alone",
    "published": "the published default",
}
"""The baselines, as they read in a sentence."""


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
    """header, and rows of cells; `strong` and `quiet` hold the numbers of rows that are set apart.

    note: what a column would say in every row.
    """

    columns: list[Column]
    rows: list[list[str]]
    strong: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)
    note: str = ""


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
    Column("behind_chosen", "Δ chosen", number(3), "paired difference from the chosen combination; above 0 is worse",
           "behind_chosen_se"),
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
    Column("nfe_per_frame", "NFE", short, "network evaluations a frame"),
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
        validation=score_table([row for row in combinations if row["split"] == "validation"], without="difference"),
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
class Gap:
    """By how much the chosen combination is better than a baseline, or worse, paired by window."""

    name: str
    size: str
    se: str
    better: bool


@dataclass(frozen=True)
class Headline:
    """The result in a few words. lead: against the best default; published: against the published one, if another."""

    name: str
    split: str
    score: str
    se: str
    lead: Gap | None
    published: Gap | None
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
            for key, name in IN_WORDS.items()
            if others.get(key) and key != "persistence"  # which the score itself is against
        ]
        best = records.lead(rows, split)
        other = best is None or best.default != "published"
        return Headline(
            chosen["name"],
            split,
            number(3)(chosen["crps_ratio"]),
            number(3)(chosen.get("crps_ratio_se")),
            None if best is None else _gap(best.default, best.difference, best.se),
            _gap("published", chosen.get("difference"), chosen.get("difference_se")) if other else None,
            short(chosen.get("steps")),
            short(chosen.get("nfe_per_frame")),
            short(chosen.get("alpha")),
            short(chosen.get("beta")),
            versus,
        )
    return None


def _gap(baseline: str, difference: Any, se: Any) -> Gap | None:
    if not known(difference):
        return None
    return Gap(IN_WORDS[baseline], number(3)(abs(difference)), number(3)(se), difference < 0)


def _chosen(rows: Sequence[Row], split: str) -> Row | None:
    return next((r for r in rows if r["split"] == split and r["chosen"] and known(r["crps_ratio"])), None)


def score_table(rows: Sequence[Row], without: str | None = None) -> Table | None:
    """Combinations and baselines, best first, the chosen ones strong and the baselines quiet; None without rows.

    without: a column that the page has no room for.
    """
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: row["crps_ratio"] if known(row["crps_ratio"]) else math.inf)
    listed = {name for column in SCORES for name in (column.key, column.se)} | _NOT_SHOWN
    more = [
        Column(key, key.replace("_", " "), short)
        for key in ordered[0]
        if key not in listed and not key.endswith("_se") and any(known(row[key]) for row in ordered)
    ]
    solvers = {row["solver"] for row in ordered if row["solver"] is not None}
    left_out = {without} | ({"solver"} if len(solvers) == 1 else set())
    table = make_table([c for c in (*SCORES, *more) if c.key not in left_out], ordered)
    strong = {i for i, row in enumerate(ordered) if row["chosen"]}
    quiet = {i for i, row in enumerate(ordered) if row["baseline"] is not None} - strong
    return Table(
        table.columns, table.rows, strong, quiet, f"The solver is {solvers.pop()}." if len(solvers) == 1 else ""
    )


def make_table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """The columns that say anything in any row."""
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return Table(used, [[_cell(column, row) for column in used] for row in rows])


def _cell(column: Column, row: Row) -> str:
    shown = column.show(row.get(column.key))
    error = row.get(column.se) if column.se else None
    if error == 0 and row.get(column.key) == 0:
        return "–"  # a difference from itself
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
class Figure:
    """A figure of a search, and below it how many trials it shows and how many of all failed."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class StageView:
    """What the page shows of a stage; None where nothing of it has run."""

    name: str
    counts: str
    scatter: Figure | None
    front: Figure | None
    curves: Figure | None
    cost: Figure | None
    table: Table | None
    refits: Table | None


def stage(workspace: Workspace, rows: Sequence[Row], component: Component) -> StageView:
    """The search of one stage: its trials at their last rung, and their curves."""
    mine = [row for row in rows if row["stage"] == component]
    searched, refits = [r for r in mine if not r.get("refit")], [r for r in mine if r.get("refit")]
    last, last_refits = _last(searched), _last(refits)
    if not last and not last_refits:
        return StageView(component, "", None, None, None, None, None, None)
    return StageView(
        component,
        _counts(last, last_refits),
        _scatter(last, last_refits),
        _front(finalists.last_rungs(searched, component), last),
        _curves(workspace, component, searched, last),
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


def _failures(last: Sequence[Row], how: str) -> str:
    """`none failed`, or how many and `how` the figure shows them."""
    failed = sum(row["status"] == "failed" for row in last)
    return f"{failed} failed: {how}" if failed else "none failed"


def _shown(count: int, last: Sequence[Row]) -> str:
    """`8 trials`, or `7 of 8 trials`."""
    return ("" if count == len(last) else f"{count} of ") + _count(len(last), "trial")


def _scatter(last: Sequence[Row], refits: Sequence[Row]) -> Figure | None:
    """Objective against noise level; a trial that failed has no objective, but is there at its noise level."""
    points, again = ([p for p in map(_point, rows) if p is not None] for rows in (last, refits))
    if not points and not again:
        return None
    shown = _shown(len(points), last) + (f" and {_count(len(again), 'refit')}" if again else "")
    failed = _failures(last, "a cross at the top edge, for want of a score")
    caption = f"Objective against noise level, by loss. {shown}; {failed}."
    return Figure(Markup(plots.search([*points, *again])), caption)


def _point(row: Row) -> Point | None:
    if row["status"] == "failed":
        return Point(row["noise_std"] or 0.0, math.nan, 0.0, _loss(row), "failed")
    if not _good(row):
        return None
    kind = "refit" if row.get("refit") else "finished" if row["status"] == "finished" else "stopped"
    published = not row.get("refit") and row["trial"].endswith("-00")
    se = row["objective_se"] if known(row["objective_se"]) else 0.0
    note = "published" if published else ""
    return Point(row["noise_std"] or 0.0, row["objective"], se, _loss(row), kind, note)


def _front(ranked: Sequence[finalists.Trial], last: Sequence[Row]) -> Figure | None:
    """What forecasts cost, where the search tried different costs."""
    ranked = [trial for trial in ranked if known(trial.row.get("nfe_per_frame"))]
    if len({trial.row["nfe_per_frame"] for trial in ranked}) < 2:
        return None
    best = finalists.front(ranked)
    points = [Cost(t.row["nfe_per_frame"], t.objective, _loss(t.row), t.name, t in best) for t in ranked]
    failed = _failures(last, "not shown, for want of a score")
    text = f"The line joins the trials that none beats at as few evaluations. {_shown(len(points), last)}; {failed}."
    return Figure(Markup(plots.front(points)), text)


def _loss(row: Row) -> str:
    return row["loss"] or "denoising"


def _curves(workspace: Workspace, component: Component, rows: Sequence[Row], last: Sequence[Row]) -> Figure | None:
    """Loss over steps and objective over rungs, coloured by loss choice, fainter with more noise.

    A trial that failed is drawn as far as it came.
    """
    colors = plots.colors_of([_loss(row) for row in last])
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
    failures = _failures(last, "a cross ends what there is of its curve")
    return Figure(Markup(plots.curves(left, right)), f"{shown}; {failures}.")


def _cost(workspace: Workspace, component: Component, last: Sequence[Row]) -> Figure | None:
    """What mattered, as the search found when it ended, and the seconds of each trial, failed ones too."""
    colors = plots.colors_of([_loss(row) for row in last])
    spent = [
        Bar(row["trial"], row["seconds"] if known(row.get("seconds")) else 0.0, colors[_loss(row)], quiet=failed)
        for row in sorted(last, key=lambda row: str(row["trial"]))
        if (failed := row["status"] == "failed") or known(row.get("seconds"))
    ]
    mattered = [Bar(name, share) for name, share in records.read_importances(workspace.importances(component)).items()]
    if not spent and not mattered:
        return None
    scored = _shown(sum(map(_good, last)), last)
    text = (
        f"Importance: how much an axis tells good trials from the rest (PED-ANOVA), over {scored} with a score. "
        f"Cost of {_shown(len(spent), last)}; {_failures(last, 'a pale bar with a cross')}."
    )
    return Figure(Markup(plots.bars(mattered, spent)), text)


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Leaves of a nested mapping by dotted name."""
    leaves: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += flat(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", text(value)))
    return leaves
