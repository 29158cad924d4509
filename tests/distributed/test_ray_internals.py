"""Each private API of Ray that raypipe uses still does what raypipe needs it for."""

import os
from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule

from raypipe import train
from raypipe.distributed import ray_internals
from raypipe.distributed.jobs import ComponentJob
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.search.schedulers.asha import identity
from raypipe.workspace.layout import Workspace
from tests.raytools import TINY, save_autoencoder, tiny


def test_the_address_is_that_of_the_file_that_ray_start_writes(tmp_path):
    assert ray_internals.head_address(str(tmp_path)) is None
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:6379\n")
    assert ray_internals.head_address(str(tmp_path)) == "127.0.0.1:6379"


def test_a_recorded_rung_stops_a_worse_trial():
    asha = ASHAScheduler(time_attr="train_step", metric="objective", mode="min", grace_period=10, max_t=91)
    for number in range(4):
        ray_internals.add_rung(asha, identity(f"earlier-{number}"), 10, 0.1 * number)
    late = identity("late")
    asha.on_trial_add(None, late)
    result = {"train_step": 10, "objective": 0.9}
    assert asha.on_trial_result(None, late, result) == ASHAScheduler.STOP
    good = identity("good")
    asha.on_trial_add(None, good)
    assert asha.on_trial_result(None, good, result | {"objective": 0.01}) == ASHAScheduler.CONTINUE


def test_recorded_results_are_what_the_median_rule_judges_by():
    rule = MedianStoppingRule(
        time_attr="train_step", metric="objective", mode="min", grace_period=10, min_samples_required=2
    )
    for number in range(3):
        results = [{"train_step": 10, "objective": 0.1}]
        ray_internals.set_median_results(rule, identity(f"earlier-{number}"), results)
        assert ray_internals.median_results(rule, identity(f"earlier-{number}")) == results
    assert ray_internals.median_results(rule, identity("new")) == []
    late = identity("late")
    decision = rule.on_trial_result(
        SimpleNamespace(get_live_trials=set), late, {"train_step": 10, "objective": 0.9, "training_iteration": 1}
    )
    assert decision == MedianStoppingRule.STOP


def test_a_paused_trial_is_running_when_it_is_stopped():
    seen = []
    trial = SimpleNamespace(status=Trial.PAUSED)

    def set_status(trial, status):
        trial.status = status

    controller = SimpleNamespace(_set_trial_status=set_status, stop_trial=lambda trial: seen.append(trial.status))
    ray_internals.stop_paused(controller, trial)
    assert seen == [Trial.RUNNING]


def test_tune_has_what_stopping_a_paused_trial_needs():
    from ray.tune.execution.tune_controller import TuneController

    assert callable(TuneController._set_trial_status) and callable(TuneController.stop_trial)


@pytest.mark.slow
@pytest.mark.cluster
def test_a_training_asks_its_own_cluster_whether_it_still_runs(head, two_cpus, tmp_path):
    """Ray's record of the last `ray start` names a cluster that has ended, which would be asked, in vain."""
    values = TINY | {"autoencoder.path": str(save_autoencoder(tmp_path / "autoencoder")), "name": "mine"}
    experiment = tiny(**values)
    workspace = Workspace(tmp_path / "storage", "mine")
    train.prepare(experiment, workspace)
    before = os.environ["RAY_ADDRESS"]
    train_jobs([ComponentJob(experiment, workspace, "one")], Settings(workspace.ray, "one", show_progress=False))
    assert os.environ["RAY_ADDRESS"] == before
    logs = [path.read_text() for path in head.logs.glob("train/ray-train-sys-controller-*.log")]
    (log,) = [log for log in logs if '"run_name": "one"' in log]
    assert "Worker group shutdown successful" in log
    assert "PlacementGroupCleaner gracefully" not in log
