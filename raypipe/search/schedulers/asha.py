"""ASHA for searches that can be resumed: trials are also compared with those of earlier processes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from raypipe.distributed.ray_internals import add_rung


@dataclass(frozen=True)
class _Identity:
    """A stand-in for a Tune trial that equals any other with the same trial name."""

    trial_id: str


def identity(name: str) -> Any:
    """A stand-in for a trial. ASHA and the median rule use a trial only as a key; the name is kept on resuming."""
    return _Identity(name)


def named(trial: Any) -> Any:
    """The stand-in for a Tune trial."""
    return identity(trial.config["trial"])


class ResumableASHA(ASHAScheduler):
    """ASHA (Li et al. 2018, arXiv 1810.05934) on training steps, which starts with the scores of earlier processes.

    Trials are identified by `config["trial"]` instead of Tune's trial id. A resumed search gives a trial the same name
    again, so a rung that is reported twice counts once. known: objectives by trial name and step.
    """

    def __init__(self, known: Mapping[str, Mapping[int, float]], **settings: Any) -> None:
        super().__init__(time_attr="train_step", **settings)
        self._known = {name: dict(scores) for name, scores in known.items()}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Record the known scores before the first trial; metric and mode, which they need, are set by then."""
        known, self._known = self._known, {}
        for name, scores in known.items():
            for step, objective in sorted(scores.items()):
                if math.isfinite(objective):
                    add_rung(self, identity(name), step, objective)
        super().on_trial_add(tune_controller, named(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision: str = super().on_trial_result(tune_controller, named(trial), result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Record the last score; a failed trial has none and does not affect the cutoffs of the rungs."""
        if math.isfinite(result.get("objective", math.inf)):
            super().on_trial_complete(tune_controller, named(trial), result)
        else:
            super().on_trial_remove(tune_controller, named(trial))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, named(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, named(trial))
