"""The finalists of a stage: the trials that are retrained, of which the next stages use the best."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from raypipe.common.errors import first_line
from raypipe.common.files import write_atomic
from raypipe.config import Component, ConfigError
from raypipe.search.records import Row, is_finite, last_rows
from raypipe.workspace.layout import Workspace

NO_DENOISER = "none"
"""Name of the finalist without a denoiser, to which the denoisers are compared."""


@dataclass(frozen=True)
class Finalist:
    """A retrained configuration, with the model of its best seed. models: those of all seeds, the best first.

    objective: mean of `objectives`, the score of each seed. magnitude: multiplier of the constant diffusion, or beta
    for a diffusion. residual_std: residual standard deviation of the flow, [C]. flow: name of the flow that a diffusion
    was trained on. published: whether this is the default, which is kept for comparison whatever its score. handed_on:
    whether the next stage uses it. closer: objective on more windows and members; only for finalists that are within a
    standard error of the best.
    """

    trial: str
    model: str
    objective: float
    objectives: tuple[float, ...]
    magnitude: float
    residual_std: tuple[float, ...]
    noise_std: float
    loss: str | None
    flow: str | None = None
    published: bool = False
    handed_on: bool = True
    closer: float | None = None
    models: tuple[str, ...] = ()


def write_finalists(workspace: Workspace, component: Component, finalists: Sequence[Finalist]) -> None:
    """Write the finalists of a stage, which must be ordered best first."""
    text = TypeAdapter(list[Finalist]).dump_json(list(finalists), indent=2)
    write_atomic(workspace.finalists(component), text + b"\n")


def read_finalists(workspace: Workspace, component: Component) -> list[Finalist]:
    """The finalists of a finished stage, best first, and the default. Raises ConfigError if it is not finished."""
    path = workspace.finalists(component)
    if not path.is_file():
        raise ConfigError(
            f"{workspace.folder}: the {component} stage is not finished; "
            f"continue it with python experiments/tune_{component}.py --name {workspace.name} --resume"
        )
    try:
        return TypeAdapter(list[Finalist]).validate_python(json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(f"{path}: not a valid list of finalists ({first_line(error)}); delete it") from None


def published(finalists: Sequence[Finalist]) -> Finalist:
    """The default among the finalists of a stage."""
    return next(finalist for finalist in finalists if finalist.published)


@dataclass(frozen=True)
class Trial:
    """A trial with its score at its last rung, for ranking. row: the row of that rung in trials.parquet."""

    name: str
    objective: float
    noise_std: float
    loss: str | None
    row: Row


def last_rungs(rows: Sequence[Row], stage: str) -> list[Trial]:
    """The trials of a stage with their scores at their last rung, best first; without failed trials."""
    good = [
        Trial(row["trial"], row["objective"], row["noise_std"], row["loss"], row)
        for row in last_rows([row for row in rows if row["stage"] == stage])
        if row["status"] != "failed" and is_finite(row["objective"])
    ]
    return sorted(good, key=lambda trial: trial.objective)


def select_finalists(trials: Sequence[Trial], top_k: int) -> list[Trial]:
    """Select the finalists, best first: the top k, the best trial of each loss, and at least two noise levels.

    Scores of short trainings only approximate those of full-length ones, so no loss is ruled out by them alone. Two
    noise levels count as different if their ratio is at least 1.5. trials: ordered best first.
    """
    chosen = list(trials[:top_k])
    for loss in {trial.loss for trial in trials}:
        best = next(trial for trial in trials if trial.loss == loss)
        if best not in chosen:
            chosen.append(best)
    if not any(_levels_differ(a, b) for a in chosen for b in chosen):
        # Prefer a level that differs from the best trial's: the other finalists may be dropped after the refits.
        others = [trial for trial in trials if any(_levels_differ(trial, other) for other in chosen)]
        chosen += sorted(others, key=lambda trial: not _levels_differ(trial, chosen[0]))[:1]
    return sorted(chosen, key=lambda trial: trial.objective)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """The Pareto front of objective and network evaluations per frame. trials: ordered best first."""
    cheapest, found = math.inf, []
    for trial in trials:
        if trial.row["nfe_per_frame"] < cheapest:
            cheapest = trial.row["nfe_per_frame"]
            found.append(trial)
    return found


def _levels_differ(a: Trial, b: Trial) -> bool:
    low, high = sorted((a.noise_std, b.noise_std))
    return high >= 1.5 * low and high > 0
