"""The median stopping rule for searches that can be resumed."""

import math
from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import MedianStoppingRule, TrialScheduler

from raypipe.distributed.ray_internals import median_results, set_median_results
from raypipe.search.schedulers.asha import identity, named


class ResumableMedianStopping(MedianStoppingRule):
    """The median stopping rule (Golovin et al. 2017, Vizier) on training steps, including scores of earlier processes.

    A trial stops at a rung if its best objective so far is worse than the median, over the other trials that have
    reached the rung, of their mean objectives up to it. If there are too few other trials, the trial continues; Ray's
    rule would pause it.

    known: objectives by trial name and step.
    """

    def __init__(self, known: Mapping[str, Mapping[int, float]], **settings: Any) -> None:
        super().__init__(time_attr="train_step", **settings)
        for name, scores in known.items():
            results = [{"train_step": s, "objective": o} for s, o in sorted(scores.items()) if math.isfinite(o)]
            if results:
                set_median_results(self, identity(name), results)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue at a rung that is recorded already; it is not judged again."""
        if self._has(trial, result):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, named(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record the last rung of a trial that ended itself; a failed trial has no score there."""
        if math.isfinite(result.get("objective", math.inf)) and not self._has(trial, result):
            super().on_trial_complete(tune_controller, named(trial), result)

    def _has(self, trial: Any, result: Mapping[str, Any]) -> bool:
        recorded = median_results(self, named(trial))
        return any(rung["train_step"] == result["train_step"] for rung in recorded)

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return str(TrialScheduler.CONTINUE)
