"""The part of the report that shows whether ensembles are reliable: rank histogram, coverage, spread by lead time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from raypipe.evaluation.table import best_of_each
from raypipe.metrics.calibration import LEVELS, RankHistogram
from raypipe.report import figures
from raypipe.report.figures import Line
from raypipe.report.tables import RELIABILITY, Table, make_table
from raypipe.search.records import Row


@dataclass(frozen=True)
class Reliability:
    """split: of the scores. note: which intervals have no coverage, and why; empty if all have one."""

    split: str
    figure: Markup
    table: Table
    note: str


def reliability(rows: Sequence[Row]) -> Reliability | None:
    """Reliability of the chosen combination and the baselines, on test if it was scored; None without rank histograms.

    rows: of combinations.parquet, with names. Tables of earlier versions have no rank histograms.
    """
    for split in ("test", "validation"):
        scored = [row for row in rows if row["split"] == split and row.get("rank_histogram") is not None]
        shown = [row for row in scored if row["chosen"]] + best_of_each(scored)
        if shown:
            listed = [row | {"members": len(row["rank_histogram"]) - 1} for row in shown]
            table = make_table(RELIABILITY, listed)
            strong = {i for i, row in enumerate(listed) if row["chosen"]}
            table = replace(table, strong=strong, quiet=set(range(len(listed))) - strong)
            return Reliability(split, Markup(_figure(listed)), table, _note(listed[0]))
    return None


def _figure(rows: Sequence[Row]) -> str:
    """rows: the chosen one first. A single member has no spread, and is not drawn."""
    ranks, coverage, spread = [], [], []
    for i, row in enumerate(row for row in rows if row["baseline"] != "persistence"):
        if row["members"] == 1:
            continue
        color = figures.SERIES[i % len(figures.SERIES)]
        name = "chosen" if row["chosen"] else row["name"]
        for key, label in (("rank_histogram", name), ("rank_histogram_pixels", f"{name}, pixels")):
            if row[key] is None or (key.endswith("pixels") and not row["chosen"]):
                continue
            histogram, bins = RankHistogram(tuple(row[key])), len(row[key])
            dashed = key.endswith("pixels")
            line = Line(label, (), (), color, bold=bool(row["chosen"]) and not dashed, dashed=dashed)
            edges = [edge / bins for edge in range(bins + 1)]
            ranks.append(replace(line, x=edges, y=[bins * frequency for frequency in histogram.frequencies]))
            levels = [level / bins for level in range(bins - 2, -1, -2)]
            coverage.append(replace(line, x=levels, y=[histogram.coverage(level) or 0.0 for level in levels]))
        if row.get("spread_skill_by_step") is not None:
            steps = [math.nan if y is None else y for y in row["spread_skill_by_step"]]
            spread.append(Line(name, (), steps, color, bold=bool(row["chosen"])))
    return figures.reliability(ranks, coverage, spread)


def _note(row: Row) -> str:
    members = row["members"]
    missing = [level for level in LEVELS if row[f"coverage_{100 * level:.0f}"] is None]
    if not missing:
        return ""
    widest = missing[-1]
    needed = math.ceil((1 + widest) / (1 - widest) - 1e-9)
    levels = " and ".join(f"{100 * level:.0f}%" for level in missing)
    return (
        f"An ensemble of {members} says nothing of its central {levels}, which reach beyond its outermost members: "
        f"evaluation.test_members {needed} would."
    )
