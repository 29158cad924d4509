"""How `search.minutes` is divided among the stages, the retraining of finalists and the evaluation. Without Ray."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from raypipe.config import Component


@dataclass(frozen=True)
class Pace:
    """Seconds of one training step, and of scoring one model on the held-out windows."""

    step: float
    score: float


@dataclass(frozen=True)
class Work:
    """Work that is left: training steps and scores, one after the other, and seconds that do not depend on the pace."""

    steps: float = 0.0
    scores: float = 0.0
    fixed: float = 0.0

    def seconds(self, pace: Pace) -> float:
        return self.steps * pace.step + self.scores * pace.score + self.fixed


@dataclass(frozen=True)
class StageWork:
    """What is left of a stage: its trials, then the retraining of its finalists."""

    trials: Work
    refits: Work


RELATIVE: Mapping[Component, float] = MappingProxyType({"flow": 1.0, "denoiser": 1.0, "diffusion": 2.0, "joint": 5.0})
"""Seconds of a training step of each stage relative to the flow's, about as on the built-in dataset.

Only used for stages that no trial of the present command has measured."""
UNMEASURED = Pace(0.04, 5.0)
"""Pace of a flow before the first measurement. Until then only the ratio of step and score matters."""


class Budget:
    """The wall-clock time of one command, from its start.

    minutes: `search.minutes`; None: no bound. began: start of the command, on `clock`.

    The time that the refits and the evaluation are expected to take is kept for them; what is left is divided among
    the trials of the stages in proportion to the time that they are expected to take. Expectations follow the
    durations that the command has measured so far.
    """

    def __init__(
        self, minutes: float | None, began: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._began = clock() if began is None else began
        self._seconds = None if minutes is None else 60 * minutes
        self._left: dict[Component, StageWork] = {}
        self._evaluation = Work()
        self._measured: dict[Component, _Measured] = {}
        self._stage_began = self._began
        self._refit_began = self._began
        self._expected = self._actual = 0.0
        self._more_than_least = 0.0

    def plan(self, stages: Mapping[Component, StageWork], evaluation: Work) -> None:
        """Set what is left to do. stages: those with work left, in the order in which they run."""
        self._left, self._evaluation = dict(stages), evaluation

    def measure(self, component: Component, steps: int, training: float, scoring: float) -> None:
        """Record the seconds that a trial took for `steps` training steps, at least one, and for a score."""
        self._measured.setdefault(component, _Measured()).add(steps, training, scoring)

    @property
    def measured(self) -> bool:
        """Whether any trial has been measured."""
        return bool(self._measured)

    def pace(self, component: Component) -> Pace:
        """The measured pace of a stage; if it has none, that of the other stages by `RELATIVE`."""
        if component in self._measured:
            return self._measured[component].pace
        others = [(name, each.pace) for name, each in self._measured.items()]
        if not others:
            return Pace(UNMEASURED.step * RELATIVE[component], UNMEASURED.score)
        step = sum(pace.step / RELATIVE[name] for name, pace in others) / len(others)
        return Pace(step * RELATIVE[component], sum(pace.score for _, pace in others) / len(others))

    def begin_trials(self) -> None:
        """The first of the stages that are left starts its trials."""
        self._stage_began = self.clock()

    def end_trials(self, enough_since: float) -> None:
        """The trials of the stage have ended. enough_since: when it had the least that it needs, on the clock."""
        self._refit_began = self.clock()
        self._more_than_least += max(0.0, self._refit_began - max(enough_since, self._stage_began))

    def end_stage(self, component: Component) -> None:
        """The finalists of a stage have been retrained."""
        work = self._left.pop(component, None)
        if work is not None:
            self._expected += work.refits.seconds(self.pace(component))
            self._actual += self.clock() - self._refit_began

    def share(self, component: Component) -> tuple[float, float] | None:
        """When the trials of the stage began and when their share ends, on the clock; None without a bound."""
        if self._seconds is None:
            return None
        left = max(0.0, self._began + self._seconds - self._stage_began)
        trials = {name: work.trials.seconds(self.pace(name)) for name, work in self._left.items()}
        correction = min(2.0, max(0.75, self._actual / self._expected)) if self._expected else 1.0
        rest = sum(correction * work.refits.seconds(self.pace(name)) for name, work in self._left.items())
        rest += self._evaluation.seconds(self._mean_pace())
        return self._stage_began, self._stage_began + divide(left, trials, rest, measured=self.measured)[component]

    def _mean_pace(self) -> Pace:
        paces = [each.pace for each in self._measured.values()] or [UNMEASURED]
        return Pace(sum(p.step for p in paces) / len(paces), sum(p.score for p in paces) / len(paces))

    def overrun(self) -> str | None:
        """A line that says how far the command exceeds its time, and how much it needs at least; None if it does not.

        At least means the preparation, one trial of each stage, the refits and the evaluation.
        """
        took = self.clock() - self._began
        if self._seconds is None or took <= self._seconds:
            return None
        least = (took - self._more_than_least) / 60
        return (
            f"search.minutes: took {took / 60:.1f} minutes, not {self._seconds / 60:g}; with one trial in each stage, "
            f"this search takes at least about {least:.1f}"
        )


def divide(left: float, trials: Mapping[Component, float], rest: float, *, measured: bool) -> dict[Component, float]:
    """The share of `left` seconds that the trials of each stage get.

    trials: expected seconds of the trials of each stage. rest: expected seconds of everything else. measured: whether
    the expectations are in real seconds. If not, only their ratios count. If everything fits, the first stage gets all
    the time that the others do not need, so that it is not ended by an expectation that is a little too low.
    """
    total = sum(trials.values())
    if total + rest <= 0:
        return dict.fromkeys(trials, left)
    if not measured:
        return {name: left * each / (total + rest) for name, each in trials.items()}
    if total + rest <= left:
        spare = left - total - rest
        return {name: each + (spare if i == 0 else 0.0) for i, (name, each) in enumerate(trials.items())}
    return {name: max(0.0, left - rest) * each / total if total else 0.0 for name, each in trials.items()}


@dataclass
class _Measured:
    """Sums of what the trials of a stage have reported."""

    steps: int = 0
    training: float = 0.0
    scores: int = 0
    scoring: float = 0.0

    def add(self, steps: int, training: float, scoring: float) -> None:
        self.steps, self.training = self.steps + steps, self.training + training
        self.scores, self.scoring = self.scores + 1, self.scoring + scoring

    @property
    def pace(self) -> Pace:
        return Pace(self.training / self.steps, self.scoring / self.scores)
