"""Population based training: the worst trials of a rung go on from copies of the best, with values of their own."""

import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, IntDistribution

from raypipe.config import Axis
from raypipe.search.default import is_default
from raypipe.search.schedulers.halving import SynchronousScheduler
from raypipe.search.space import decode, distribution

SHARE = 0.2
"""The worst fifth copies from the best fifth: truncation selection, as Jaderberg et al. do."""
RESAMPLED = 0.25
"""Chance that a value is drawn anew instead of moved, as in Ray's PopulationBasedTraining."""
FACTORS = (0.8, 1.2)
FIXED = ("train.component", "train.flow", "train.steps")
"""Fields of a training that its weights belong to; those of the network, `model.*`, are never changed either."""


@dataclass(frozen=True)
class Exploit:
    """A trial that goes on from a step with another one's weights, and with new values (by dotted name)."""

    trial: str
    donor: str
    step: int
    values: Mapping[str, Any]


class PopulationBasedTraining(SynchronousScheduler):
    """Population based training (Jaderberg et al. 2017, arXiv 1711.09846), synchronous: nobody is stopped.

    Ray's own refuses to run under a search algorithm, which is who proposes where trials begin here.

    axes: of the search, by dotted name; copy: puts an exploit into effect, before anyone goes on. The published
    default, trial 0, to which all others are compared, gives but never takes. Donors, moves and draws depend on the
    seed, the rung and the trial alone, so a killed search decides the same again.
    """

    def __init__(
        self,
        known: Mapping[str, Mapping[int, float]],
        trials: int,
        places: int,
        *,
        axes: Mapping[str, Axis],
        seed: int,
        copy: Callable[[Exploit], None],
    ) -> None:
        super().__init__(known, trials, places)
        self._axes, self._seed, self._copy = axes, seed, copy

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Takes note of the values of a trial that changed them before the search was resumed."""
        if "values" in result:
            trial.config["values"] = json.loads(result["values"])
        return super().on_trial_result(tune_controller, trial, result)

    def judge(self, rung: int, waiting: Mapping[str, Any]) -> list[str]:
        ranked = self._ranked(rung)
        count = min(math.ceil(SHARE * len(ranked)), len(ranked) // 2)
        donors = [name for name in ranked if name in waiting][:count]
        for name in ranked[len(ranked) - count :]:
            if donors and name in waiting and name not in donors and not is_default(name):
                draw = random.Random(f"{self._seed} {rung} {name}")
                donor = draw.choice(donors)
                values = explore(waiting[donor].config["values"], self._axes, draw)
                self._copy(Exploit(name, donor, rung, values))
                waiting[name].config["values"] = values
        return []


def explore(values: Mapping[str, Any], axes: Mapping[str, Axis], draw: random.Random) -> dict[str, Any]:
    """Values near others, inside their axes; those that the weights depend on stay."""
    free = {n: a for n, a in axes.items() if n in values and n.startswith("train.") and n not in FIXED}
    changed = {
        name: _anew(name, axis, draw) if draw.random() < RESAMPLED else _moved(name, axis, values[name], draw)
        for name, axis in free.items()
    }
    return {**values, **changed}


def _anew(name: str, axis: Axis, draw: random.Random) -> Any:
    """A value of the whole axis, on its own scale."""
    space: Any = distribution(name, axis)
    if isinstance(space, CategoricalDistribution):
        return draw.choice(space.choices)
    if space.log:
        return _inside(space, axis, math.exp(draw.uniform(math.log(space.low), math.log(space.high))))
    return _inside(space, axis, draw.uniform(space.low, space.high))


def _moved(name: str, axis: Axis, value: Any, draw: random.Random) -> Any:
    """A neighbour in a list; in a range a fifth more or less. From 0, which no factor moves, to the range's end."""
    space: Any = distribution(name, axis)
    if isinstance(space, CategoricalDistribution):
        index = space.choices.index(value) + draw.choice((-1, 1))
        return space.choices[min(max(index, 0), len(space.choices) - 1)]
    factor = draw.choice(FACTORS)
    if axis.zero and value == 0:
        return axis.low if factor > 1 else 0.0
    return _inside(space, axis, value * factor)


def _inside(space: Any, axis: Axis, value: float) -> Any:
    clipped = min(max(value, space.low), space.high)
    return round(clipped) if isinstance(space, IntDistribution) else decode(axis, clipped)
