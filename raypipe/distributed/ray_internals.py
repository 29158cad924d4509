"""All uses of private APIs of Ray; tests/distributed/test_ray_internals.py fails if one of them changes.

Ray has no public API to read the address that `ray start` recorded on this machine, to give ASHA and the median rule
results of an earlier process, or to stop a paused trial such that the searcher receives its last result.
"""

from collections.abc import Sequence
from typing import Any

from ray._private.services import find_bootstrap_address
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule


def head_address(temp_dir: str | None = None) -> str | None:
    """HOST:PORT of the head node that `ray start` last started on this machine, whether it still runs or not.

    temp_dir: the --temp-dir of `ray start`; None for Ray's default.
    """
    address: str | None = find_bootstrap_address(temp_dir)
    return address


def add_rung(scheduler: ASHAScheduler, trial: Any, step: int, objective: float) -> None:
    """Record a score of an earlier process in ASHA, which must have one bracket, and its metric and mode set."""
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
