"""What a stage of the search hands on."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from raypipe.common.files import write_atomic
from raypipe.config import Component, ConfigError
from raypipe.search.records import Row, is_finite
from raypipe.workspace.layout import Workspace

NO_DENOISER = "none"
"""The candidate that every denoiser has to beat."""


@dataclass(frozen=True)
class Finalist:
    """A configuration that a stage hands on, with the model of its best seed.

    objective: the mean over seeds; objectives: each seed's; magnitude: the constant diffusion's multiplier,
    or beta; residual_std: the flow's, [C]; flow: the model that a diffusion was trained on; published: the
    published default, kept for comparison whatever it scores; handed_on: whether the next stage builds on it;
    closer: the objective on more windows and members, for those too close to the best to be told apart before.
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


def write_finalists(workspace: Workspace, component: Component, finalists: Sequence[Finalist]) -> None:
    """Best first."""
    text = TypeAdapter(list[Finalist]).dump_json(list(finalists), indent=2)
    write_atomic(workspace.finalists(component), text + b"\n")


def read_finalists(workspace: Workspace, component: Component) -> list[Finalist]:
    """What a finished stage handed on, best first, and the published default. ConfigError if it is not finished."""
    path = workspace.finalists(component)
    if not path.is_file():
        raise ConfigError(
            f"{workspace.folder}: its {component} stage is not finished; "
            f"go on with python experiments/tune_{component}.py --name {workspace.name} --resume"
        )
    try:
        return TypeAdapter(list[Finalist]).validate_python(json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(f"{path}: not what a stage wrote ({str(error).splitlines()[0]}); delete it") from None


def published(finalists: Sequence[Finalist]) -> Finalist:
    """The published default among them."""
    return next(finalist for finalist in finalists if finalist.published)


@dataclass(frozen=True)
class Trial:
    """A trial as ranked: its last rung."""

    name: str
    objective: float
    noise_std: float
    loss: str | None
    row: Row


def last_rungs(rows: Sequence[Row], stage: str) -> list[Trial]:
    """The trials of a stage at their last rung, best first; failed ones are left out."""
    last: dict[str, Row] = {}
    for row in rows:
        if row["stage"] == stage and row["step"] >= last.get(row["trial"], {"step": -1})["step"]:
            last[row["trial"]] = row
    good = [
        Trial(row["trial"], row["objective"], row["noise_std"], row["loss"], row)
        for row in last.values()
        if row["status"] != "failed" and is_finite(row["objective"])
    ]
    return sorted(good, key=lambda trial: trial.objective)


def select_finalists(trials: Sequence[Trial], top_k: int) -> list[Trial]:
    """Who goes on to the next stage: the top k, the best of each loss, and at least two noise levels.

    A proxy may rank, but it never eliminates a whole choice. Two noise levels differ if one is at least
    half as large again as the other. Best first.
    """
    chosen = list(trials[:top_k])
    for loss in {trial.loss for trial in trials}:
        best = next(trial for trial in trials if trial.loss == loss)
        if best not in chosen:
            chosen.append(best)
    if not any(_levels_differ(a, b) for a in chosen for b in chosen):
        # Rather another level than the best has: the one it differs from may not be kept after the refits.
        others = [trial for trial in trials if any(_levels_differ(trial, other) for other in chosen)]
        chosen += sorted(others, key=lambda trial: not _levels_differ(trial, chosen[0]))[:1]
    return sorted(chosen, key=lambda trial: trial.objective)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats at as few network evaluations a frame, of trials that are ordered best first."""
    cheapest, found = math.inf, []
    for trial in trials:
        if trial.row["nfe_per_frame"] < cheapest:
            cheapest = trial.row["nfe_per_frame"]
            found.append(trial)
    return found


def _levels_differ(a: Trial, b: Trial) -> bool:
    low, high = sorted((a.noise_std, b.noise_std))
    return high >= 1.5 * low and high > 0
