"""Quality against cost: the chosen combination and the baselines, and the rivals at each number of evaluations."""

from collections.abc import Sequence

from markupsafe import Markup

from raypipe.config import RIVALS
from raypipe.evaluation.table import BASELINES
from raypipe.report import figures
from raypipe.report.figures import Line
from raypipe.report.tables import known
from raypipe.search.records import Row

POINTS = ("flow", "published")
"""Baselines that are drawn at their cost."""
LEVELS = ("climatology", "persistence")
"""Baselines without a network, which are drawn as horizontal lines."""


def quality_plot(rows: Sequence[Row]) -> Markup | None:
    """Plot of crps_ratio against network evaluations per frame, on test if it was scored; None without rivals."""
    for split in ("test", "validation"):
        scored = [row for row in rows if row["split"] == split and known(row["crps_ratio"])]
        found = {name: [r for r in scored if r["baseline"] == name] for name in (*RIVALS, *POINTS, *LEVELS)}
        if any(found[rival] for rival in RIVALS):
            groups = {"chosen": [r for r in scored if r["chosen"]]}
            groups |= {BASELINES[name]: found[name] for name in (*RIVALS, *POINTS)}
            levels = {BASELINES[name]: found[name][0]["crps_ratio"] for name in LEVELS if found[name]}
            return Markup(figures.quality(_lines(groups), levels))
    return None


def _lines(groups: dict[str, list[Row]]) -> list[Line]:
    colors = figures.colors_of(list(groups))
    lines = []
    for name, rows in groups.items():
        ordered = sorted(rows, key=lambda row: row["nfe_per_frame"])
        x, y = [row["nfe_per_frame"] for row in ordered], [row["crps_ratio"] for row in ordered]
        lines += [Line(name, x, y, colors[name], bold=name == "chosen")] if rows else []
    return lines
