"""All uses of private APIs of Ray; tests/distributed/test_ray_internals.py fails if one of them changes.

Ray has no public API to read the address that `ray start` recorded on this machine, to leave out of a training what
serves Ray Data, to stop a training at once on Ctrl-C, to tell its processes the address of their cluster, to give ASHA
and the median rule results of an earlier process, or to stop a paused trial such that the searcher receives its last
result.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray._private.services import find_bootstrap_address
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule


def head_address(temp_dir: str | None = None) -> str | None:
    """HOST:PORT of the head node that `ray start` last started on this machine, whether it still runs or not.

    temp_dir: the --temp-dir of `ray start`; None for Ray's default.
    """
    address: str | None = find_bootstrap_address(temp_dir)
    return address


ENV_VARS_TO_PROPAGATE.add("RAY_ADDRESS")


class LeanTorchTrainer(TorchTrainer):
    """A TorchTrainer without Ray Data, which heeds Ctrl-C, and whose processes know the address of their own cluster.

    raypipe does not use Ray Data; without it, a process less is started for each worker group. The controller does not
    need the config of the training loop; without it, it does not import the modules of the jobs. The address is for the
    process that removes placement groups: without it, Ray asks the cluster that `ray start` recorded on this machine,
    which may be another one, or one that has ended (then each training waits 12 seconds for an answer).
    """

    def fit(self) -> Any:
        context: Any = self.train_run_context  # type: ignore[has-type]  # untyped in Ray
        self.train_run_context = replace(context, train_loop_config=None)
        before = os.environ.get("RAY_ADDRESS")
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
        try:
            return super().fit()
        finally:
            if before is None:
                del os.environ["RAY_ADDRESS"]
            else:
                os.environ["RAY_ADDRESS"] = before

    def _register_sigint_handler(self, controller: Any) -> None:
        """Stop the workers on Ctrl-C and raise KeyboardInterrupt.

        Ray's own handler loses a Ctrl-C that comes before the controller runs, and otherwise exits with code 0.
        """

        def interrupt(number: int, frame: Any) -> None:
            controller.abort.remote()
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # untyped in Ray
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]


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
