"""The tables of the page: what each column means, and how its values read."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypipe.search.records import Row

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


def describe(row: Mapping[str, Any]) -> str:
    """What a row of the combinations is called on the page."""
    if row["baseline"] is not None:
        return BASELINES.get(row["baseline"], str(row["baseline"]))
    diffusion = "constant diffusion" if row["diffusion"] == "constant" else row["diffusion"]
    return " + ".join(str(name) for name in (row["flow"], row["denoiser"], diffusion) if name) or "–"


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
