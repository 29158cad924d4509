"""Trials that pause and trials that copy each other, on a real Ray, and after the driver was killed."""

import json
import os
import shutil
import signal

import pytest
import torch

from raypipe import checkpoint, train
from raypipe.checkpoint import OPTIMIZER
from raypipe.common.files import standing
from raypipe.search import records
from raypipe.search.configured import finalist_values
from raypipe.search.stage import Stage
from raypipe.search.tuner import run_search
from raypipe.training.component import ComponentTraining
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace
from tests import raytools
from tests.raytools import TINY, started, wait_for
from tests.test_survival import DRIVE, check_whole, make_stage, saved_step, study

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.long]


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    path = raytools.save_autoencoder(tmp_path_factory.mktemp("schedulers") / "autoencoder")
    return TINY | {"autoencoder.path": str(path), "search.rungs": 2}


@pytest.fixture(scope="module")
def prepared(two_cpus, values, tmp_path_factory):
    storage = tmp_path_factory.mktemp("prepared") / "storage"
    train.prepare(raytools.tiny(**values | {"name": "demo"}), Workspace(storage, "demo"))
    return storage


@pytest.fixture
def storage(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "storage")
    return tmp_path / "storage"


def by_trial(workspace):
    """The rows of each trial, by step."""
    found = {}
    for row in records.read_rows(workspace.trials):
        found.setdefault(row["trial"], {})[row["step"]] = row
    return found


def check_halved(workspace, trials, rungs):
    """The best third at the first rung were finished, the others stopped there."""
    check_whole(workspace, trials)
    rows = by_trial(workspace)
    ranked = sorted(rows, key=lambda name: (rows[name][rungs[0]]["objective"], name))
    for place, name in enumerate(ranked):
        status, steps = ("finished", rungs) if place < trials // 3 else ("stopped", rungs[:1])
        assert sorted(rows[name]) == steps
        assert rows[name][steps[-1]]["status"] == status


HALVING = {"search.scheduler": "halving", "search.flow.trials": 6}


def test_halving_stops_exactly_the_worst_two_thirds(two_cpus, storage, values):
    stage = make_stage(storage, values | HALVING)
    economy = run_search(stage)
    assert economy.trials == 6
    check_halved(stage.workspace, 6, [6, 18])


def kill(process, head):
    os.kill(process.popen.pid, signal.SIGKILL)
    wait_for(lambda: not head.trials(), 60)


def test_halving_after_kill_9_of_the_driver(head, two_cpus, storage, values, tmp_path):
    """Killed as soon as one of the survivors is on its way to the end."""
    longer = values | HALVING | {"search.flow.steps": 90, "train.checkpoint_every": 5}
    workspace = Workspace(storage, "demo")
    with started(tmp_path / "first", ["-c", DRIVE, storage, json.dumps(longer)], storage, **head.variables) as process:

        def half_way():
            assert process.popen.poll() is None, process.err[-3000:]
            return any(saved_step(workspace, f"flow-{i:02d}") > 30 for i in range(6))

        wait_for(half_way, 300)
        kill(process, head)
    before = {t.number: t.intermediate_values for t in study(workspace)}
    assert len(before) == 6 and not all(90 in scores for scores in before.values())
    run_search(make_stage(storage, longer))
    check_halved(workspace, 6, [30, 90])
    after = {t.number: t.intermediate_values for t in study(workspace)}
    assert all(before[number].items() <= after[number].items() for number in before)


AXES = {
    "train.learning_rate": {"low": 1e-5, "high": 5e-3, "log": True},
    "train.noise_std": {"low": 0.05, "high": 0.3},
    "train.loss": {"choices": ["nll", "mse"]},
}
"""Rates of which the lowest, and not the published default's, are the worst by far."""
PBT = {"search.scheduler": "pbt", "search.flow.trials": 4, "search.rungs": 3, "search.flow.axes": AXES}


def test_pbt_copies_weights_and_optimizer_and_goes_on_from_them(two_cpus, storage, values, monkeypatch, tmp_path):
    stage = make_stage(storage, values | PBT)
    workspace, seen, take_over = stage.workspace, [], Stage.take_over

    def recorded(self, exploit):
        own, donor = (standing(workspace.run("flow", name)) for name in (exploit.trial, exploit.donor))
        assert not raytools.same_weights(own, donor)
        take_over(self, exploit)
        assert raytools.same_weights(own, donor)
        assert (own / OPTIMIZER).read_bytes() == (donor / OPTIMIZER).read_bytes()
        shutil.copytree(own, tmp_path / "copies" / f"{exploit.step}")
        seen.append(exploit)

    monkeypatch.setattr(Stage, "take_over", recorded)
    run_search(stage)
    check_whole(workspace, 4)
    assert [exploit.step for exploit in seen] == [6, 12]
    rows = by_trial(workspace)
    assert all(sorted(steps) == [6, 12, 18] for steps in rows.values())
    told = {(name, step): row["exploited"] for name in rows for step, row in rows[name].items() if row["exploited"]}
    assert told == {(exploit.trial, exploit.step + 6): exploit.donor for exploit in seen}
    for exploit in seen:
        ranked = sorted(rows, key=lambda name: rows[name][exploit.step]["objective"])
        assert exploit.donor == ranked[0]
        assert exploit.trial == ranked[-1]
        before, after = (json.loads(rows[exploit.trial][step]["values"]) for step in (exploit.step, exploit.step + 6))
        assert after == exploit.values != before
        assert rows[exploit.trial][exploit.step + 6]["noise_std"] == exploit.values["train.noise_std"]

    last = seen[-1]
    assert finalist_values(stage.workspace, "flow", last.trial) == last.values
    experiment = stage.configure(last.values)
    torch.set_num_threads(1)
    alone = ComponentTraining(
        experiment, ExperimentData(experiment, workspace), stage.parents(experiment)
    )  # the same without Ray
    alone.restore(tmp_path / "copies" / "12")
    alone.advance(18, lambda progress: None)
    alone.save(tmp_path / "alone")
    assert raytools.difference(tmp_path / "alone", workspace.run("flow", last.trial)) < 1e-4


def test_a_pbt_trial_keeps_its_values_after_kill_9_of_the_driver(head, two_cpus, storage, values, tmp_path):
    longer = values | PBT | {"search.flow.steps": 180, "train.checkpoint_every": 5}
    workspace = Workspace(storage, "demo")

    def taken():
        """What the trials that copied another, and have gone on since, say of it."""
        found = {}
        for i in range(4):
            if saved_step(workspace, f"flow-{i:02d}") > 60:
                meta = checkpoint.read_meta(workspace.run("flow", f"flow-{i:02d}"))
                if meta.extra.get("exploited", {}).get("step") == 60:
                    found[f"flow-{i:02d}"] = meta.extra
        return found

    with started(tmp_path / "first", ["-c", DRIVE, storage, json.dumps(longer)], storage, **head.variables) as process:

        def on_its_way():
            assert process.popen.poll() is None, process.err[-3000:]
            return taken()

        wait_for(on_its_way, 300)
        kill(process, head)
    ((name, extra),) = taken().items()

    stage = make_stage(storage, longer)
    run_search(stage)
    check_whole(workspace, 4)
    rows = by_trial(workspace)
    proposed = json.loads(rows[name][60]["values"])
    assert json.loads(rows[name][120]["values"]) == extra["values"] != proposed
    assert rows[name][120]["exploited"] == extra["exploited"]["trial"]
    assert rows[name][120]["learning_rate"] == extra["values"]["train.learning_rate"]
    assert finalist_values(stage.workspace, "flow", name) == json.loads(rows[name][180]["values"])
