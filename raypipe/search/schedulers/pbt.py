"""Population based training: the worst trials of a rung continue from the weights of the best, with changed values."""

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
"""Truncation selection: the worst fifth of the trials copies the best fifth, as in Jaderberg et al. 2017."""
RESAMPLED = 0.25
"""Probability that a value is resampled instead of perturbed, as in Ray's PopulationBasedTraining."""
FACTORS = (0.8, 1.2)
"""Factors of a perturbation, one of which is drawn."""
FIXED = ("train.component", "train.flow", "train.steps")
"""Train fields that never change, since the weights depend on them; fields outside `train.*` never change either."""


@dataclass(frozen=True)
class Exploit:
    """A trial takes over the weights of a donor at a step, and continues with new values (by dotted name)."""

    trial: str
    donor: str
    step: int
    values: Mapping[str, Any]


class PopulationBasedTraining(SynchronousScheduler):
    """Synchronous population based training (Jaderberg et al. 2017, arXiv 1711.09846). No trial stops.

    Ray's PopulationBasedTraining cannot be combined with a search algorithm, which proposes the initial values here.

    axes: the axes of the search, by dotted name. copy: called to carry out an exploit, before any trial continues. The
    default, trial 0, may be a donor but keeps its own weights and values, since all trials are compared with it. The
    random choices depend only on the seed, the rung and the trial name, so a resumed search makes them again.
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
        """Also update the trial's values, which may have changed before the search was resumed."""
        if "values" in result:
            trial.config["values"] = json.loads(result["values"])
        return super().on_trial_result(tune_controller, trial, result)

    def judge(self, rung: int, waiting: Mapping[str, Any]) -> list[str]:
        """Let the worst trials copy the best ones; stops none."""
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
    """Perturb or resample the values within their axes, except those that the weights depend on."""
    free = {n: a for n, a in axes.items() if n in values and n.startswith("train.") and n not in FIXED}
    changed = {
        name: _resample(name, axis, draw) if draw.random() < RESAMPLED else _perturb(name, axis, values[name], draw)
        for name, axis in free.items()
    }
    return {**values, **changed}


def _resample(name: str, axis: Axis, draw: random.Random) -> Any:
    """Draw a value from the whole axis, uniformly on its linear or logarithmic scale."""
    space: Any = distribution(name, axis)
    if isinstance(space, CategoricalDistribution):
        return draw.choice(space.choices)
    if space.log:
        return _inside(space, axis, math.exp(draw.uniform(math.log(space.low), math.log(space.high))))
    return _inside(space, axis, draw.uniform(space.low, space.high))


def _perturb(name: str, axis: Axis, value: Any, draw: random.Random) -> Any:
    """A neighbor in a list of choices, or the value times one of FACTORS; 0 stays or becomes the range's low end."""
    space: Any = distribution(name, axis)
    if isinstance(space, CategoricalDistribution):
        if value not in space.choices:  # of a trial that began before the space changed
            return draw.choice(space.choices)
        index = space.choices.index(value) + draw.choice((-1, 1))
        return space.choices[min(max(index, 0), len(space.choices) - 1)]
    factor = draw.choice(FACTORS)
    if axis.zero and value == 0:
        return axis.low if factor > 1 else 0.0
    return _inside(space, axis, value * factor)


def _inside(space: Any, axis: Axis, value: float) -> Any:
    """Clip to the range and decode."""
    clipped = min(max(value, space.low), space.high)
    return round(clipped) if isinstance(space, IntDistribution) else decode(axis, clipped)
