"""Every use of a private API of Ray, in one place; tests/distributed/test_ray_internals.py fails if one changes.

Public API offers none of these: the address that `ray start` left on this machine, rungs of ASHA and results of the
median rule from an earlier process, and stopping a paused trial with a result that reaches the searcher.
"""

from collections.abc import Sequence
from typing import Any

from ray._private.services import find_bootstrap_address
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule


def head_address(temp_dir: str | None = None) -> str | None:
    """HOST:PORT of the head that `ray start` last started on this machine, running or not.

    temp_dir: the head's --temp-dir, None for Ray's default.
    """
    address: str | None = find_bootstrap_address(temp_dir)
    return address


def add_rung(scheduler: ASHAScheduler, trial: Any, step: int, objective: float) -> None:
    """Record the score of an earlier process in ASHA's only bracket. The metric and mode must be set."""
    sign = scheduler._metric_op or 0.0
    scheduler._brackets[0].on_result(trial, step, sign * objective)


def median_results(rule: MedianStoppingRule, trial: Any) -> list[dict[str, Any]]:
    """The results that the rule has recorded for a trial."""
    return list(rule._results.get(trial, []))


def set_median_results(rule: MedianStoppingRule, trial: Any, results: Sequence[dict[str, Any]]) -> None:
    rule._results[trial] = list(results)


def stop_paused(controller: Any, trial: Any) -> None:
    """Stop a paused trial. Tune reports the last result to the searcher only for RUNNING trials."""
    controller._set_trial_status(trial, Trial.RUNNING)
    controller.stop_trial(trial)
