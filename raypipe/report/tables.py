"""The tables of the report: their columns, the meaning of each, and the format of its values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raypipe.evaluation.choice import RIVAL_NAMES
from raypipe.evaluation.table import BASELINES
from raypipe.forecast.ceiling import Ceiling, ceiling_rows
from raypipe.forecast.manifest import CONSTANT, JOINT
from raypipe.search.records import Row

IN_WORDS = {
    "persistence": "repeating the last frame",
    "climatology": "climatology",
    "flow": "the flow alone",
    "published": "the default",
    **RIVAL_NAMES,
}
"""Baselines of combinations.parquet and their names in a sentence."""


def with_steps(name: str, steps: int | None) -> str:
    """The name of a rival with its integration steps; None for other baselines."""
    return name if steps is None else f"{name} with {steps} step{'s' * (steps != 1)}"


@dataclass(frozen=True)
class Column:
    """A column of a table. key: key of its value in a row. show: formats a value. meaning: tooltip of the header.

    se: key of the standard error of the value, shown after it. numeric: align to the right.
    """

    key: str
    label: str
    show: Callable[[Any], str]
    meaning: str = ""
    se: str | None = None
    numeric: bool = True


@dataclass(frozen=True)
class Table:
    """A table with its formatted cells. strong, quiet: indices of the rows in bold and of the muted rows.

    note: sentences about columns that are left out because their values are the same in all rows.
    """

    columns: list[Column]
    rows: list[list[str]]
    strong: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)
    note: str = ""


def number(digits: int) -> Callable[[Any], str]:
    """Formatter of numbers with a fixed number of decimals; an unknown value is shown as a dash."""
    return lambda value: f"{value:.{digits}f}".replace("-", "−") if known(value) else "–"


def short(value: Any) -> str:
    """Format a number with three significant digits; an unknown value is shown as a dash."""
    return f"{value:.3g}".replace("-", "−") if known(value) else "–"


def text(value: Any) -> str:
    """Format any value as text; None is shown as a dash."""
    return "–" if value is None else str(value)


def known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def milliseconds(value: Any) -> str:
    """Format a number of seconds in milliseconds; an unknown value is shown as a dash."""
    return f"{1000 * value:.3g}" if known(value) else "–"


SCORES = [
    Column("name", "forecast", text, numeric=False),
    Column("alpha", "α", short, "denoising magnitude"),
    Column("beta", "β", short, "diffusion magnitude"),
    Column("steps", "steps", short, "integration steps per frame"),
    Column("solver", "solver", text, numeric=False),
    Column("crps_ratio", "CRPS ratio", number(3), "CRPS divided by that of persistence, in latent space; 0 is perfect",
           "crps_ratio_se"),
    Column("difference", "Δ default", number(3), "difference from the default, paired by window; below 0 is better",
           "difference_se"),
    Column("behind_chosen", "Δ chosen", number(3), "difference from the chosen one, paired by window; above 0 is worse",
           "behind_chosen_se"),
    Column("crps_ratio_pixels", "in pixels", number(3), "CRPS ratio of decoded frames"),
    Column("decoding", "decoding", text, "how latents became frames, see evaluation.decoding", numeric=False),
    Column("energy_ratio_pixels", "energy", number(3), "fair energy score of whole decoded frames over persistence's"),
    Column("variogram_ratio_pixels", "variogram", number(3), "fair variogram score of whole decoded frames over "
           "persistence's: whether the pixels of a member differ from one another as those of the truth do"),
    Column("bodies_kept", "bodies kept", number(2), "share of the bodies that members show at the last frame with 0.4 "
           "to 2.5 times their area"),
    Column("psnr", "PSNR", number(2), "peak signal-to-noise ratio of single members, dB"),
    Column("ssim", "SSIM", number(3), "structural similarity of single members"),
    Column("efflite0_distance", "efflite0 distance", number(3), "distance of the first member's frames on features of "
           "EfficientNet-Lite0; not LPIPS"),
    Column("efflite0_frechet", "efflite0 Fréchet", number(1), "Fréchet distance of the first member's clips, on "
           "features of EfficientNet-Lite0; not FVD"),
    Column("lpips", "LPIPS", number(3), "of single members"),
    Column("fvd", "FVD", number(1), "with given frames, mean and standard deviation over members", "fvd_sd"),
    Column("jedi", "JEDi", number(3), "with given frames, mean and standard deviation over members", "jedi_sd"),
    Column("spread_skill", "spread/skill", number(2), "spread of the ensemble / error of its mean; 1 is reliable"),
    Column("nfe_per_frame", "NFE", short, "network evaluations per frame"),
    Column("seconds_per_frame", "ms/frame", milliseconds, "time per predicted frame of one member"),
    Column("training_seconds", "training s", number(0), "seconds of the training steps of its networks, of all seeds"),
]  # fmt: skip


RELIABILITY = [
    Column("name", "forecast", text, numeric=False),
    Column("members", "members", short, "size of the ensemble"),
    Column("energy_ratio", "energy", number(3), "fair energy score of whole latents over that of persistence"),
    Column("variogram_ratio", "variogram", number(3), "fair variogram score of whole latents over that of persistence"),
    *(
        Column(f"{key}{suffix}", f"{label}{where}", number(3), meaning)
        for suffix, where in (("", ""), ("_pixels", " in pixels"))
        for key, label, meaning in (
            (
                "reliability_index",
                "reliability",
                "sum over ranks of the distance of their frequency from 1 / (members + 1)",
            ),
            *((f"coverage_{level}", f"{level}%", f"truths in the central {level}% interval") for level in (50, 80, 90)),
        )
    ),
]


TRIALS = [
    Column("trial", "trial", text, numeric=False),
    Column("status", "status", text, numeric=False),
    Column("step", "step", number(0)),
    Column("objective", "CRPS ratio", number(3), "on validation windows", "objective_se"),
    Column("difference", "Δ default", number(3), "difference from the default, paired by window", "difference_se"),
    Column("noise_std", "s", short, "noise level"),
    Column("loss", "loss", text, numeric=False),
    Column("learning_rate", "learning rate", short),
    Column("time_input", "time input", lambda value: "–" if value is None else "yes" if value else "no", numeric=False),
    Column("flow", "flow", text, "flow on which it was trained", numeric=False),
    Column("magnitude", "magnitude", short, "multiplier or beta, fitted on training windows"),
    Column("spread_skill", "spread/skill", number(2)),
    Column("nfe_per_frame", "NFE", short, "network evaluations per frame"),
    Column("seconds", "seconds", number(0)),
    Column("error", "error", text, numeric=False),
]


FLOORS = ("efflite0_frechet", "fvd", "jedi")
"""Columns of distances between sets of clips, which other true clips have too."""


_NOT_SHOWN = {"combination", "trainings", "flow", "denoiser", "diffusion", "split", "baseline", "chosen", "fps"}
_NOT_SHOWN |= {column.key for column in RELIABILITY} | {f"{key}_floor" for key in FLOORS}
"""Columns of combinations.parquet that this table does not show; all other numeric columns get a column."""


def describe(row: Mapping[str, Any]) -> str:
    """The name of a combination on the page. row: row of combinations.parquet."""
    if row["baseline"] is not None:
        name = BASELINES.get(row["baseline"], str(row["baseline"]))
        return with_steps(name, row["steps"] if row["baseline"] in RIVAL_NAMES else None)
    names = {CONSTANT: "constant diffusion", JOINT: None}
    diffusion = names.get(row["diffusion"], row["diffusion"])
    names_of_parts = (flow_name(row), row["denoiser"], diffusion)
    return " + ".join(str(name) for name in names_of_parts if name) or "–"


def flow_name(row: Mapping[str, Any]) -> str | None:
    """The name of the flow of a combination, with the number of its trainings if several take turns."""
    trainings = row.get("trainings") or 1
    return f"{row['flow']} x{trainings}" if row["flow"] and trainings > 1 else row["flow"]


def score_table(rows: Sequence[Row], without: str | None = None) -> Table | None:
    """Table of combinations and baselines, best first: the chosen one in bold, baselines muted; None without rows.

    without: key of a column to leave out.
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
    notes = [f"The solver is {solvers.pop()}."] if len(solvers) == 1 else []
    floors = {c.label: c.show(ordered[0].get(f"{c.key}_floor")) for c in table.columns if c.key in FLOORS}
    floors = {label: value for label, value in floors.items() if value != "–"}
    if floors:
        said = ", ".join(f"{label} {value}" for label, value in floors.items())
        notes.append(f"As many true clips of training have {said}: the floor at this number of clips.")
    return Table(table.columns, table.rows, strong, quiet, " ".join(notes))


def ceiling_table(ceiling: Ceiling) -> Table:
    """Table of what perfect latents score in pixels, and the last frame repeated."""
    keys = ("name", "crps_ratio_pixels", "psnr", "ssim")
    rows = [dict(zip(keys, row, strict=True)) for row in ceiling_rows(ceiling)]
    return make_table([Column("name", "frames", text, numeric=False), *(c for c in SCORES if c.key in keys[1:])], rows)


def make_table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Make a table of rows. Columns without a value in any row are left out."""
    used = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return Table(used, [[_cell(column, row) for column in used] for row in rows])


def _cell(column: Column, row: Row) -> str:
    shown = column.show(row.get(column.key))
    error = row.get(column.se) if column.se else None
    if error == 0 and row.get(column.key) == 0:
        return "–"  # the difference of a combination from itself
    return f"{shown} ± {column.show(error)}" if known(error) and shown != "–" else shown
