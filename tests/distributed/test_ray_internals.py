"""Each private API of Ray that raypipe uses still does what raypipe needs it for."""

import os
import signal
from dataclasses import replace
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
from tests.raytools import TINY, save_autoencoder, tiny, title, wait_for


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


@pytest.fixture(scope="module")
def job(two_cpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("internals")
    experiment = tiny(**TINY | {"autoencoder.path": str(save_autoencoder(folder / "autoencoder")), "name": "mine"})
    workspace = Workspace(folder / "storage", "mine")
    train.prepare(experiment, workspace)
    return ComponentJob(experiment, workspace, "one")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_a_ctrl_c_that_comes_before_the_training_runs_is_not_lost(head, job, monkeypatch, tmp_path):
    before, register = signal.getsignal(signal.SIGINT), ray_internals.LeanTorchTrainer._register_sigint_handler

    def register_and_press(self, controller):
        register(self, controller)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(ray_internals.LeanTorchTrainer, "_register_sigint_handler", register_and_press)
    early = replace(job, name="early")
    with pytest.raises(KeyboardInterrupt):
        train_jobs([early], Settings(tmp_path / "ray", "early", show_progress=False))
    assert signal.getsignal(signal.SIGINT) == before
    actors = ("ray::TrainController", "ray::RayTrainWorker")
    wait_for(lambda: not any(title(pid).startswith(actors) for pid in head.process.family()))
    assert not early.folder.exists()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_a_training_asks_its_own_cluster_whether_it_still_runs(head, job, tmp_path):
    """Ray's record of the last `ray start` names a cluster that has ended, which would be asked, in vain."""
    before = os.environ["RAY_ADDRESS"]
    train_jobs([job], Settings(tmp_path / "ray", "one", show_progress=False))
    assert os.environ["RAY_ADDRESS"] == before
    logs = [path.read_text() for path in head.logs.glob("train/ray-train-sys-controller-*.log")]
    (log,) = [log for log in logs if '"run_name": "one"' in log]
    assert "Worker group shutdown successful" in log
    assert "PlacementGroupCleaner gracefully" not in log
    assert not job.folder.with_name("early").exists()  # nor has the interrupted training gone on meanwhile
