"""What a training writes while it runs."""

import json
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from raypipe.training.monitor import METRICS, Label, Monitor, log_folder, read_metrics, steps_per_second
from tests.wandbtools import Run, read_runs


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "search-3" / "flow" / "flow-00"


LABEL = Label("search-3/flow", {"train": {"noise_std": 0.1}})


def record(folder, after, steps, loss=1.0, **more):
    monitor = Monitor(folder, after, **more)
    for step in steps:
        monitor.log({"step": step, "loss": loss / step})
    monitor.close()


def steps(folder):
    return [row["step"] for row in read_metrics(folder)]


def test_rows_come_back(folder):
    assert read_metrics(folder) == []
    record(folder, 0, [5, 10])
    assert read_metrics(folder) == [{"step": 5, "loss": 0.2}, {"step": 10, "loss": 0.1}]
    assert log_folder(folder) == folder.parent / "flow-00.log"
    assert not folder.exists()  # the model's folder is the model's alone


def test_rows_are_there_as_soon_as_they_are_logged(folder):
    monitor = Monitor(folder, 0)
    monitor.log({"step": 5, "loss": 0.2})
    assert steps(folder) == [5]
    monitor.close()


def test_resuming_drops_what_comes_after_its_step(folder):
    record(folder, 0, [5, 10, 15, 20])
    record(folder, 10, [15], loss=30.0)  # the checkpoint was of step 10
    assert read_metrics(folder) == [
        {"step": 5, "loss": 0.2},
        {"step": 10, "loss": 0.1},
        {"step": 15, "loss": 2.0},
    ]
    record(folder, 0, [5])  # begun anew
    assert steps(folder) == [5]


def test_what_was_kept_survives_before_the_next_row(folder):
    record(folder, 0, [5, 10])
    monitor = Monitor(folder, 10)
    assert steps(folder) == [5, 10]
    monitor.close()


def test_a_torn_last_line_is_ignored(folder):
    record(folder, 0, [5, 10])
    path = log_folder(folder) / METRICS
    whole = path.read_text()
    for cut in (1, 5, len(whole) // 2 - 1):
        path.write_text(whole[:-cut])
        assert steps(folder) == [5]
    path.write_text(whole + '{"step": 15, "lo')
    assert steps(folder) == [5, 10]
    record(folder, 15, [20])
    assert steps(folder) == [5, 10, 20]
    assert all(json.loads(line) for line in path.read_text().splitlines())
    path.write_text("")
    assert steps(folder) == []


def test_the_speed_is_that_between_the_last_two_rows():
    rows = [{"step": 10, "seconds": 4.0}, {"step": 30, "seconds": 5.0}]
    assert [steps_per_second(rows[:count]) for count in range(3)] == [0.0, 2.5, 4.0]
    assert steps_per_second([{"step": 10, "loss": 1.0}]) == 0.0  # as an earlier version logged it


def test_tensorboard_reads_the_same(folder):
    record(folder, 0, [5, 10, 15])
    (events,) = log_folder(folder).glob("events.out.tfevents.*")
    events.rename(events.with_name("events.out.tfevents.0000000001.first"))  # names are ordered by the second
    record(folder, 10, [15, 20], loss=60.0)
    board = EventAccumulator(str(log_folder(folder)))
    board.Reload()
    assert board.Tags()["scalars"] == ["loss"]
    found = {event.step: event.value for event in board.Scalars("loss")}
    assert found == pytest.approx({5: 0.2, 10: 0.1, 15: 4.0, 20: 3.0})
    assert len(board.Scalars("loss")) == 4  # the dropped row is purged


def hparams(folder):
    """What TensorBoard's HParams have of a run: its values by name, and the tags of its metrics."""
    board = EventAccumulator(str(log_folder(folder)))
    board.Reload()
    start, experiment = (board.SummaryMetadata(f"_hparams_/{name}") for name in ("session_start_info", "experiment"))
    values = metadata.parse_session_start_info_plugin_data(start.plugin_data.content).hparams
    metrics = metadata.parse_experiment_plugin_data(experiment.plugin_data.content).metric_infos
    found = {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}
    return found, [metric.name.tag for metric in metrics], board.Tags()["scalars"]


def test_tensorboard_has_the_values_of_a_trial_as_hparams_of_its_run(folder):
    values = {
        "train.noise_std": 0.1,
        "train.loss": "nll",
        "model.time_input": False,
        "model.depth": 2,
        "train.flow": None,
    }
    for step in (0, 10):  # a trial that is paused has a monitor for each rung
        monitor = Monitor(folder, step, values=values)
        monitor.log({"step": step + 10, "loss": 0.1})
        monitor.score(step + 10, 0.75)
        monitor.close()
    found, metrics, scalars = hparams(folder)
    assert found == values | {"train.flow": "None"}
    assert metrics == ["objective"] and sorted(scalars) == ["loss", "objective"]
    assert [path.name for path in log_folder(folder).iterdir() if path.is_dir()] == []


def test_wandb_records_offline(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monitor = Monitor(folder, 0, wandb=LABEL)
    monitor.log({"step": 5, "loss": 0.2})
    monitor.log({"step": 10, "loss": 0.1})
    monitor.score(10, 0.75)
    monitor.close()
    (run,) = read_runs(folder)
    assert run == Run(run.id, "flow-00", "search-3/flow", {"train": {"noise_std": 0.1}}, {5: 0.2, 10: 0.1}, {10: 0.75})
    assert steps(folder) == [5, 10]
    record(folder, 10, [15], wandb=LABEL)  # what goes on after a crash goes on in the same run
    first, second = read_runs(folder)
    assert first == run and (second.id, second.loss) == (run.id, {15: pytest.approx(1 / 15)})
    other = folder.with_name("flow-01")
    record(other, 0, [5], wandb=LABEL)
    assert read_runs(other)[0].id != run.id


UNREACHABLE = """
import sys, time
from pathlib import Path
from raypipe.training.monitor import Label, Monitor
for name in ("flow-00", "flow-01"):
    began = time.monotonic()
    monitor = Monitor(Path(sys.argv[1]) / "demo" / "flow" / name, 0, wandb=Label("demo/flow", {}))
    monitor.log({"step": 5, "loss": 0.2})
    monitor.close()
    print("took", time.monotonic() - began)
"""


@pytest.mark.slow
def test_an_unreachable_wandb_costs_one_short_wait(tmp_path):
    """Two trainings in one process, as in a trial's reused actor: both are recorded, the second at once."""
    there = {"WANDB_MODE": "online", "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    homes = dict.fromkeys(("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "HOME"), str(tmp_path / "home"))
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE, tmp_path],
        env=os.environ | there | homes | {"WANDB_SILENT": "true"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("took"))
    for name in ("flow-00", "flow-01"):
        folder = tmp_path / "demo" / "flow" / name
        assert steps(folder) == [5]
        assert len(list((log_folder(folder) / "wandb").glob("offline-run-*"))) == 1
    assert first < 60
    assert second < first / 2
