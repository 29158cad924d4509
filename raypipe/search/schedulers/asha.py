"""ASHA whose rungs outlive the process: a resumed search judges its trials against all that came before."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler

from raypipe.distributed.ray_internals import add_rung


@dataclass(frozen=True)
class _Identity:
    trial_id: str


def identity(name: str) -> Any:
    """All that ASHA and the median rule look at in a trial: here its own name, which a resumed search gives again."""
    return _Identity(name)


def named(trial: Any) -> Any:
    return identity(trial.config["trial"])


class ResumableASHA(ASHAScheduler):
    """ASHA (Li et al. 2018, arXiv 1810.05934) on training steps, that begins with the scores recorded so far.

    known: objectives by trial name and step. Trials are told apart by their own name, which a resumed search
    gives them again, not by Tune's; so a rung that is reported twice counts once.
    """

    def __init__(self, known: Mapping[str, Mapping[int, float]], **settings: Any) -> None:
        super().__init__(time_attr="train_step", **settings)
        self._known = {name: dict(scores) for name, scores in known.items()}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """The first trial comes when metric and mode are known, which recorded scores need."""
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
        """A trial that failed has no score, and moves no rung's cut."""
        if math.isfinite(result.get("objective", math.inf)):
            super().on_trial_complete(tune_controller, named(trial), result)
        else:
            super().on_trial_remove(tune_controller, named(trial))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, named(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, named(trial))
