"""When a stage ends before all its trials: decided by its share of `search.minutes` and by `search.patience`.

Ray Tune's own time budget would stop trials between rungs and could end a stage before any trial has a score, and its
plateau stopper counts results instead of trials. So `StageLimit` decides, and Tune carries it out
(`early_stop.StopEarly`). Independent of Ray.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from raypipe.config import Component
from raypipe.search.budget import Budget, Work

Reason = Literal["minutes", "patience"]
"""Why a stage has ended before all its trials: the field of `search` that ended it."""
Start = Literal["now", "later", "never"]
"""Whether another trial may start."""
MARGIN = 0.1
"""Fraction at the end of a share in which no trial is expected to reach a rung, as some take longer than expected."""


def plateaued(scores: Sequence[float], startup: int, patience: int | None) -> bool:
    """Whether the best score has not improved in the last `patience` trials.

    scores: of the trials that have ended with a score, in the order of their end; lower is better. startup: the first
    ones, which sample at random, do not count. patience: None for no limit.
    """
    if patience is None:
        return False
    best = min(range(len(scores)), key=lambda i: scores[i], default=-1)
    return len(scores) - max(startup, best + 1) >= patience


@dataclass
class _Live:
    """A trial that runs. rung: index of the rung that it is training to. since: when it began to, on the clock."""

    trial: str
    rung: int
    since: float


class StageLimit:
    """Decides when a stage ends early. The searcher tells it about each trial that starts, reports or ends.

    rungs: training steps of the rungs. startup: see `plateaued`. patience: `search.patience`. pauses: whether the
    scheduler pauses trials at rungs until the others reach them; then trials start all together, and a stage has the
    least that it needs once the default has a score, not only when it has ended. default: name of the first trial.
    ended: names and scores of the trials that ended in earlier processes, in that order; None for failed ones.

    reason: why the stage ends early; None as long as it does not.
    """

    def __init__(
        self,
        budget: Budget,
        component: Component,
        rungs: Sequence[int],
        *,
        startup: int,
        patience: int | None,
        pauses: bool,
        default: str,
        ended: Sequence[tuple[str, float | None]] = (),
    ) -> None:
        self._budget, self._component, self._rungs = budget, component, rungs
        self._startup, self._patience = startup, patience
        self._pauses, self._default = pauses, default
        self._scores: list[float] = []
        self._default_done = False
        self._live: dict[str, _Live] = {}
        self.reason: Reason | None = None
        self.enough_since = math.inf
        for trial, objective in ended:
            self._add(trial, objective)
        self._check_patience()

    def begin(self, trial_id: str, trial: str, reported: Sequence[int]) -> None:
        """A trial starts or continues. reported: the steps of the rungs that it has passed."""
        self._live[trial_id] = _Live(trial, sum(rung in reported for rung in self._rungs), self._budget.clock())

    def report(self, trial_id: str, *, steps: int, training: float, scoring: float) -> None:
        """A trial has reached a rung. training: seconds of its last `steps` steps; scoring: seconds of its score."""
        live = self._live.get(trial_id)
        if live is None:
            return
        if steps > 0 and scoring > 0:
            self._budget.measure(self._component, steps, training, scoring)
        live.rung, live.since = live.rung + 1, self._budget.clock()
        if self._pauses and live.trial == self._default:
            self._note_enough()

    def end(self, trial_id: str, objective: float | None) -> None:
        """A trial has ended. objective: its score; None if it failed."""
        live = self._live.pop(trial_id, None)
        if live is not None:
            self._add(live.trial, objective)
            self._check_patience()

    def _add(self, trial: str, objective: float | None) -> None:
        self._default_done = self._default_done or trial == self._default
        if objective is not None and math.isfinite(objective):
            self._scores.append(objective)
        if self._default_done and self._scores:
            self._note_enough()

    def _check_patience(self) -> None:
        if plateaued(self._scores, self._startup, self._patience):
            self.reason = "patience"

    def start(self) -> Start:
        """Whether the next trial may start."""
        if self.reason is not None:
            return "never"
        if self._pauses or self._arrives(_Live("", 0, self._budget.clock())):
            return "now"
        if self._live:
            return "later"
        if not self._has_enough():
            return "now"
        self.reason = "minutes"
        return "never"

    def stop(self) -> bool:
        """Whether all running trials are to stop now; --resume continues them."""
        if self.reason is None and self._has_enough() and self._time_is_up():
            self.reason = "minutes"
        return self.reason is not None

    def _time_is_up(self) -> bool:
        """Whether the share is used up, or no running trial is expected to reach its next rung within it."""
        share = self._budget.share(self._component)
        if share is None:
            return False
        idle = not self._pauses and bool(self._live) and not any(self._arrives(live) for live in self._live.values())
        return idle or self._budget.clock() >= share[1]

    def _arrives(self, live: _Live) -> bool:
        """Whether a trial is expected to reach its next rung within the share of the stage."""
        share = self._budget.share(self._component)
        if share is None:
            return True
        began, end = share
        rung = min(live.rung, len(self._rungs) - 1)
        steps = self._rungs[rung] - (self._rungs[rung - 1] if rung else 0)
        expected = Work(steps, 1).seconds(self._budget.pace(self._component)) if self._budget.measured else 0.0
        return live.since + expected <= end - MARGIN * (end - began)

    def _has_enough(self) -> bool:
        return math.isfinite(self.enough_since)

    def _note_enough(self) -> None:
        if not self._has_enough():
            self.enough_since = self._budget.clock()
