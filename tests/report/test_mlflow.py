"""A search and a training in MLflow: what is there, once and no more after a kill; and that MLflow ends neither."""

import json
import logging
import shutil
import socket
import sys
import time
from importlib import import_module
from threading import Thread

import pytest
from werkzeug.serving import make_server

from experiments import pipeline
from raypipe import train, tune
from raypipe.report import mlflow_log as module
from raypipe.report.mlflow_log import search_in_mlflow, training_in_mlflow
from raypipe.report.mlflow_store import check_tracking
from raypipe.search import records
from raypipe.training.monitor import METRICS, log_folder, read_metrics
from raypipe.workspace.claims import hold
from tests.mlflowtools import read_runs
from tests.raytools import free_ports, listing, outcome, tiny, wait_for
from tests.recordedtools import BEGUN, cut, unpack


@pytest.fixture(autouse=True)
def quick(monkeypatch, caplog):
    for name in (
        "TRACKING_URI",
        "EXPERIMENT_NAME",
        "HTTP_REQUEST_MAX_RETRIES",
        "DISABLE_TELEMETRY",
        "SUPPRESS_PRINTING_URL_TO_STDOUT",
    ):
        monkeypatch.setenv(f"MLFLOW_{name}", "")  # so that what the command sets is taken back
        monkeypatch.delenv(f"MLFLOW_{name}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    for name in ("SECONDS", "MOST"):
        monkeypatch.setattr(module, name, 0.05)
    caplog.set_level(logging.WARNING)
    check_tracking()


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database of MLflow without runs: it takes seconds to make one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def uri(empty, tmp_path, monkeypatch):
    shutil.copy(empty, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def killed(tmp_path):
    return cut(tmp_path / "storage")


def log_once(workspace, error=None):
    with hold(workspace), search_in_mlflow(workspace, True):
        if error is not None:
            raise error


def logged(folder, name="loss"):
    return [(row["step"], row[name]) for row in read_metrics(folder)]


def test_every_training_of_a_finished_search_is_a_run_below_that_of_the_search(uri, tmp_path):
    workspace = unpack(tmp_path)
    rows = records.read_rows(workspace.trials)
    failed = {"status": "failed", "objective": None, "error": "the loss is nan"}
    records.write_rows(workspace.trials, [row | (failed if row["trial"] == "flow-00" else {}) for row in rows])
    for name in ("mine-s1", "flow-00-s1b"):  # of raypipe.train in the same experiment: no part of the search
        log_folder(workspace.run("flow", name)).mkdir()
        (log_folder(workspace.run("flow", name)) / METRICS).write_text('{"step": 1, "loss": 1.0}\n')
    log_once(workspace)
    runs = read_runs(uri)
    assert (runs["demo"].status, runs["demo"].parent) == ("FINISHED", None)
    assert set(runs) == {"demo", "autoencoder", *(row["trial"] for row in rows)}
    for row in records.last_rows(records.read_rows(workspace.trials)):
        run, folder = runs[row["trial"]], workspace.run(row["stage"], row["trial"])
        assert (run.parent, run.tags["raypipe.stage"]) == ("demo", row["stage"])
        assert run.status == {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}[row["status"]]
        assert run.metrics["loss"] == logged(folder) and run.metrics["grad_norm"] == logged(folder, "grad_norm")
        mine = [r for r in rows if r["trial"] == row["trial"]]
        if row["status"] == "failed":
            assert run.tags["raypipe.error"] == "the loss is nan" and "final_objective" not in run.metrics
            continue
        assert run.metrics["objective"] == [(r["step"], r["objective"]) for r in mine]
        assert run.metrics["final_objective"] == [(row["step"], row["objective"])]
        if not row["refit"]:
            assert run.params == {name: str(value) for name, value in json.loads(row["values"]).items()}
    (again,) = [run for name, run in runs.items() if name == "flow-02-s1"]
    assert again.params == runs["flow-02"].params | {"train.random_seed": str(tiny().train.random_seed + 1)}
    assert {row["status"] for row in rows} >= {"finished", "stopped"}


def tags(uri, name):
    runs = read_runs(uri)
    return runs[name].tags if name in runs else {}


def test_a_search_that_goes_on_after_ctrl_c_and_after_a_kill_goes_on_in_the_same_runs(uri, killed):
    folder = killed.run("diffusion", "diffusion-01")
    metrics = log_folder(folder) / METRICS
    metrics.parent.mkdir(exist_ok=True)
    metrics.write_text('{"step": 3, "loss": 1.25}\n{"step": 4, "lo')
    with hold(killed), search_in_mlflow(killed, True):
        wait_for(lambda: "raypipe.state" in tags(uri, "diffusion-01"))
        running = read_runs(uri)
    assert running["demo"].status == running["diffusion-01"].status == "RUNNING"
    assert running["diffusion-01"].metrics == {"loss": [(3, 1.25)]}
    assert running["diffusion-01"].params == {name: str(value) for name, value in BEGUN.items()}
    with pytest.raises(KeyboardInterrupt):
        log_once(killed, KeyboardInterrupt())
    stopped = read_runs(uri)
    assert stopped["demo"].status == stopped["diffusion-01"].status == "KILLED"
    assert stopped["diffusion-01"].tags["raypipe.state"] == "interrupted"
    with metrics.open("a") as file:  # its last line was cut off: a resumed training writes it again
        file.write('ss": 1.0}\n{"step": 6, "loss": 0.5}\n')
    with hold(killed), search_in_mlflow(killed, True):
        wait_for(lambda: read_runs(uri)["diffusion-01"].status == "RUNNING")
        wait_for(lambda: len(read_runs(uri)["diffusion-01"].metrics["loss"]) == 3)
    after = read_runs(uri)
    assert after["diffusion-01"].metrics["loss"] == [(3, 1.25), (4, 1.0), (6, 0.5)]
    assert all(after[name].id == running[name].id for name in ("demo", "diffusion-01"))
    assert set(after) == set(stopped)
    for name in set(after) - {"demo", "diffusion-01"}:
        assert after[name] == stopped[name]  # no point of a metric is logged twice


def test_a_kill_between_two_writes_leaves_what_the_next_process_completes(uri, killed, monkeypatch):
    """As after a create of which the answer was lost: the run is there without params, metrics and state."""
    real = module.Runs._log_params

    def dies(self, known, run):
        if run.name == "flow-01":
            raise OSError("killed here")
        real(self, known, run)

    monkeypatch.setattr(module.Runs, "_log_params", dies)
    log_once(killed)
    assert read_runs(uri)["flow-01"].params == {} and "flow-02" not in read_runs(uri)
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    log_once(killed)
    run = read_runs(uri)["flow-01"]
    assert run.status == "KILLED" and run.metrics["loss"] == logged(killed.run("flow", "flow-01"))
    assert "train.noise_std" in run.params


def test_a_training_is_one_run_with_its_settings(uri, own_data):
    workspace, experiment = own_data.workspace, own_data.experiment
    metrics = log_folder(workspace.run("flow", "f-01-nll")) / METRICS
    metrics.parent.mkdir(parents=True)
    for step, ended in ((5, KeyboardInterrupt()), (10, None)):
        try:
            with training_in_mlflow(workspace, "flow", "f-01-nll", "flow-f-01-nll", experiment, True):
                with metrics.open("a") as file:
                    file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")
                if ended:
                    raise ended
        except KeyboardInterrupt:
            assert read_runs(uri)["tiny/f-01-nll"].status == "KILLED"
    (run,) = read_runs(uri).values()
    assert (run.name, run.parent, run.status) == ("tiny/f-01-nll", None, "FINISHED")
    assert run.metrics == {"loss": [(5, 0.2), (10, 0.1)]}
    assert run.params["train.noise_std"] == "0.1" and run.params["model.inner_dim"] == "16"


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.name == module.__name__]


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_that_does_not_answer_costs_one_short_wait_and_one_line(silent, killed, monkeypatch, caplog):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen()  # it takes the request, and never answers
        address = f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with hold(killed), search_in_mlflow(killed, True):
            wait_for(lambda: warnings(caplog))
            time.sleep(1.5)  # further tries
            began = time.monotonic()
        assert time.monotonic() - began < 15  # MLflow itself would try for minutes
    (line,) = warnings(caplog)
    assert line.startswith(f"MLflow: nothing is logged to {address.replace('me:secret@', '')} (") and "\n" not in line
    assert "the search goes on" in line and "secret" not in line


def test_a_folder_that_cannot_be_written_is_one_line_and_what_was_missed_comes_later(killed, caplog, empty):
    place = killed.folder / "mlruns"
    place.touch()  # as root, a test can write to a read-only folder
    with hold(killed), search_in_mlflow(killed, True):
        wait_for(lambda: warnings(caplog))
        place.unlink()
        place.mkdir()
        shutil.copy(empty, place)
        wait_for(lambda: len(warnings(caplog)) == 2)
    first, second = warnings(caplog)
    assert "the search goes on" in first and second.endswith("is reached again, and has everything")
    assert read_runs(f"sqlite:///{place / 'mlflow.db'}")["flow-02"].status == "FINISHED"


def test_a_server_that_starts_late_gets_all_of_a_training(empty, own_data, tmp_path, monkeypatch, caplog, capfd):
    shutil.copy(empty, tmp_path / "mlflow.db")
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(tmp_path / "artifacts"))
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    workspace = own_data.workspace
    metrics = log_folder(workspace.run("flow", "f-01-nll")) / METRICS
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 5, "loss": 0.2}\n')
    with training_in_mlflow(workspace, "flow", "f-01-nll", "flow-f-01-nll", own_data.experiment, True):
        wait_for(lambda: warnings(caplog))
        server = make_server("127.0.0.1", port, import_module("mlflow.server").app, threaded=True)
        Thread(target=server.serve_forever, daemon=True).start()
        wait_for(lambda: len(warnings(caplog)) == 2)
    (run,) = read_runs(f"http://127.0.0.1:{port}").values()
    server.shutdown()
    assert (run.status, run.metrics, run.params["train.noise_std"]) == ("FINISHED", {"loss": [(5, 0.2)]}, "0.1")
    assert capfd.readouterr().out == f"MLflow  http://127.0.0.1:{port}\n"


@pytest.mark.parametrize(
    "address",
    [
        "htp://host",
        "http://",
        "http://host:port",
        "localhost:5000",
        "sqlite:/",
        "no uri",
        "file:///folder",
        "http://h:0",
    ],
)
def test_an_address_that_can_be_none_is_refused_before_anything_begins(address, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for main, prog in ((train.main, "raypipe.train"), (pipeline.main, "pipeline.py")):
        assert outcome(main, prog, ["--mlflow", "--storage", tmp_path]) == 2
        out, err = capfd.readouterr()
        assert err.startswith(f"{prog}: error: MLFLOW_TRACKING_URI: {address!r} is not the address of a tracking store")
        assert (out, err.count("\n")) == ("", 1) and "unset it" in err, err
    assert listing(tmp_path) == []


def test_a_missing_package_is_one_line_that_says_what_to_install(tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert outcome(lambda argv: tune.search("flow", argv), "tune_flow.py", ["--mlflow", "--storage", tmp_path]) == 2
    out, err = capfd.readouterr()
    assert (out, err) == (
        "",
        "tune_flow.py: error: --mlflow needs the package mlflow, which is not installed; "
        "pip install 'raypipe[mlflow]', or in a checkout -e '.[mlflow]'\n",
    )
    assert listing(tmp_path) == []
