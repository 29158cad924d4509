"""Files of a search: trials.parquet, with one row per trial and rung, and the per-window scores of each rung."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.common.errors import first_line
from raypipe.common.files import atomic_path
from raypipe.config import ConfigError, Experiment
from raypipe.search.default import is_default
from raypipe.training.monitor import log_folder

if TYPE_CHECKING:
    from raypipe.metrics.ensemble import Score

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The rows of a Parquet table; empty if the file does not exist. Raises ConfigError for any other kind of file."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:  # pyarrow opens a path twice, and the file may be replaced in between
            return [dict(row) for row in pq.read_table(file).to_pylist()]
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path}: not a Parquet table ({first_line(error)}); delete it") from None


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows atomically; a column that a row does not have becomes null."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def last_rows(rows: Sequence[Row]) -> list[Row]:
    """The row of each trial at its last rung, in the order in which the trials first appear."""
    last: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row["stage"], row["trial"])
        if row["step"] >= last.get(key, row)["step"]:
            last[key] = row
    return list(last.values())


def read_importances(path: Path) -> dict[str, float]:
    """Importance of each axis, as shares, largest first; empty if the file does not exist.

    Raises ConfigError if the file does not hold importances.
    """
    if not path.is_file():
        return {}
    try:
        shares = {str(name): float(share) for name, share in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError, TypeError):
        raise ConfigError(f"{path}: not a valid table of importances; delete it") from None
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def rung_row(
    experiment: Experiment,
    trial: str,
    step: int,
    *,
    flow: str | None,
    score: Score | None,
    default: Score | None,
) -> Row:
    """The columns of a row of trials.parquet that describe a configuration and its score at a step.

    experiment: the configuration. flow: the flow that the stage uses, unless the configuration names one. default:
    score of the default on the same windows, for the paired difference.
    """
    train = experiment.train
    ratio = None if score is None else score.ratio
    gap = score.minus(default) if score is not None and default is not None else None
    return {
        "stage": train.component,
        "trial": trial,
        "default": is_default(trial),
        "step": step,
        "objective": None if ratio is None or not math.isfinite(ratio.value) else ratio.value,
        "objective_se": None if ratio is None else ratio.se,
        "difference": None if gap is None else gap.value,
        "difference_se": None if gap is None else gap.se,
        "noise_std": train.noise_std,
        "loss": train.loss,
        "learning_rate": train.learning_rate,
        "time_input": experiment.model.time_input and train.component != "denoiser",
        "flow": train.flow or flow,
        "spread_skill": None if score is None else score.spread_skill,
        "objective_by_step": None if score is None else score.ratio_by_step.tolist(),
    }


def is_finite(value: Any) -> bool:
    """Whether a column value is neither null, infinite nor NaN."""
    return value is not None and math.isfinite(value)


def save_score(folder: Path, step: int, score: Score) -> None:
    """Save a trial's score per window and predicted frame in the log folder of its model."""
    path = _score_path(folder, step)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            crps=score.crps,
            reference=score.reference,
            variance=score.variance,
            error=score.error,
            members=score.members,
        )


def read_score(folder: Path, step: int) -> Score | None:
    """The score that `save_score` saved; None if there is none."""
    from raypipe.metrics.ensemble import Score  # imports torch, for which a reader of the tables must not wait

    path = _score_path(folder, step)
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as kept:
        return Score(kept["crps"], kept["reference"], kept["variance"], kept["error"], int(kept["members"]))


def _score_path(folder: Path, step: int) -> Path:
    return log_folder(folder) / f"score-{step:08d}.npz"
