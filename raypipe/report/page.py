"""Writes evaluation/report.html, the report of a search: a single page without external files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raypipe.common.files import write_atomic
from raypipe.evaluation import choice, table
from raypipe.evaluation.protocol import in_words, read_protocol
from raypipe.forecast import film
from raypipe.forecast.ceiling import ceiling_warning, read_ceiling
from raypipe.report import figures
from raypipe.report.figures import Line
from raypipe.report.quality import quality_plot
from raypipe.report.reliability import reliability
from raypipe.report.stages import stage
from raypipe.report.tables import IN_WORDS, ceiling_table, describe, known, number, score_table, short, text, with_steps
from raypipe.report.template import template
from raypipe.search import records
from raypipe.search.records import Row
from raypipe.workspace.layout import Workspace

TEMPLATE = "page.html.jinja"
SAMPLES = 6
"""Largest number of samples on the page."""
SHOWN_ROWS = 12
"""Number of rows of the validation table that are shown without unfolding it."""
CASES = ("worst", "median", "best")
"""The forecasts that were chosen by their score, in the order of the page."""


def write_report(workspace: Workspace, path: Path | None = None) -> Path:
    """Write the report of an experiment to `path`, by default `evaluation/report.html`, and return the path.

    A sentence on the page replaces each part that has no results yet. Raises ConfigError if the folder contains no
    experiment or if one of its tables cannot be read.
    """
    experiment = workspace.experiment()
    combinations = [
        dict(row, name=describe(row)) for row in records.read_rows(workspace.evaluation / "combinations.parquet")
    ]
    trials = records.read_rows(workspace.trials)
    protocol = read_protocol(workspace)
    manifest, ceiling = workspace.folder / "manifest.json", read_ceiling(workspace)
    page = template(TEMPLATE).render(
        title=workspace.name,
        dataset=experiment.dataset.name,
        headline=headline(combinations),
        against=choice.against_rivals(combinations),
        quality=quality_plot(combinations),
        lost=choice.verdict(combinations, ceiling),
        test=score_table([row for row in combinations if row["split"] == "test"]),
        validation=score_table([row for row in combinations if row["split"] == "validation"], without="difference"),
        protocol={} if protocol is None else {split: in_words(protocol, split) for split in protocol["windows"]},
        shown=SHOWN_ROWS,
        ceiling=None if ceiling is None else ceiling_table(ceiling),
        warning=None if ceiling is None else ceiling_warning(ceiling),
        horizon=horizon_plot(combinations),
        reliability=reliability(combinations),
        samples=[film.read_sample(path) for path in sorted((workspace.folder / "samples").glob("*.npz"))[:SAMPLES]],
        rival_in_words=lambda name, steps: with_steps(IN_WORDS[name], steps),
        cases=[film.read_case(path) for path in _cases(workspace.folder / "samples" / "cases")],
        stages=[stage(workspace, trials, name, experiment.search) for name in experiment.search.searched],
        ran=flat(json.loads(manifest.read_text())) if manifest.is_file() else [],
        config=(workspace.folder / "config.yaml").read_text(),
    )  # fmt: skip
    path = path or workspace.evaluation / "report.html"
    write_atomic(path, page)
    return path


def _cases(folder: Path) -> list[Path]:
    """The files of the worst, the median and the best forecast, as far as they are there."""
    return [path for name in CASES if (path := folder / f"{name}.npz").is_file()]


@dataclass(frozen=True)
class Versus:
    """Comparison with a baseline. score: its crps_ratio. saved: 1 - crps_ratio of the chosen combination / `score`."""

    name: str
    score: str
    saved: float


@dataclass(frozen=True)
class Gap:
    """Absolute difference of the crps_ratio from that of a baseline, paired by window, and its standard error."""

    name: str
    size: str
    se: str
    better: bool


@dataclass(frozen=True)
class Headline:
    """The result at the top of the page. lead: margin over the best baseline; default: over the default, if another."""

    name: str
    split: str
    score: str
    se: str
    lead: Gap | None
    default: Gap | None
    steps: str
    nfe: str
    alpha: str
    beta: str
    versus: list[Versus]


def headline(rows: Sequence[Row]) -> Headline | None:
    """The result on test, or on validation if nothing is scored on test yet; None if no combination is chosen yet."""
    for split in ("test", "validation"):
        chosen = _chosen(rows, split)
        if chosen is None:
            continue
        others = {r["baseline"]: r for r in table.best_of_each([r for r in rows if r["split"] == split])}
        versus = [
            Versus(_in_words(others[key]), number(3)(ratio), 1 - chosen["crps_ratio"] / ratio)
            for key in IN_WORDS
            if key in others and known(ratio := others[key]["crps_ratio"])
            if ratio and key != "persistence"  # crps_ratio is relative to persistence
        ]
        best = table.margin_over_best_default(rows, split)
        other = best is None or best.default != "published"
        return Headline(
            chosen["name"],
            split,
            number(3)(chosen["crps_ratio"]),
            number(3)(chosen.get("crps_ratio_se")),
            None if best is None else _gap(with_steps(IN_WORDS[best.default], best.steps), best.difference, best.se),
            _gap(IN_WORDS["published"], chosen.get("difference"), chosen.get("difference_se")) if other else None,
            short(chosen.get("steps")),
            short(chosen.get("nfe_per_frame")),
            short(chosen.get("alpha")),
            short(chosen.get("beta")),
            versus,
        )
    return None


def _in_words(row: Row) -> str:
    return with_steps(IN_WORDS[row["baseline"]], row["steps"] if row["baseline"] in choice.RIVAL_NAMES else None)


def _gap(name: str, difference: Any, se: Any) -> Gap | None:
    if not known(difference):
        return None
    return Gap(name, number(3)(abs(difference)), number(3)(se), difference < 0)


def _chosen(rows: Sequence[Row], split: str) -> Row | None:
    return next((r for r in rows if r["split"] == split and r["chosen"] and known(r["crps_ratio"])), None)


def horizon_plot(rows: Sequence[Row]) -> Markup | None:
    """Plot of crps_ratio by predicted frame for the chosen combination and the baselines; None without such scores."""
    for split in ("test", "validation"):
        scored = [r for r in rows if r["split"] == split and r.get("crps_ratio_by_step") is not None]
        shown = [r for r in scored if r["chosen"]][:1]
        shown += [r for r in table.best_of_each(scored) if r["baseline"] != "persistence"]
        if shown:
            lines = [
                Line(
                    "chosen" if row["chosen"] else row["name"],
                    (),
                    [math.nan if y is None else y for y in row["crps_ratio_by_step"]],
                    figures.SERIES[i % len(figures.SERIES)],
                    bold=bool(row["chosen"]),
                    dashed=not row["chosen"],
                )
                for i, row in enumerate(shown)
            ]
            return Markup(figures.by_step(lines))
    return None


def flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted name, value) of each leaf of a nested mapping."""
    leaves: list[tuple[str, str]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves += flat(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", text(value)))
    return leaves
