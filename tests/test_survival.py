"""What a search survives: the death of its processes and machines, and a full disk; and what each saves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ray.cluster_utils import Cluster

from raypipe import checkpoint, train, tune
from raypipe.common.files import standing
from raypipe.config import ConfigError
from raypipe.distributed.connection import start_ray
from raypipe.report.live_page import live_page
from raypipe.search import records
from raypipe.search.finalists import read_finalists
from raypipe.search.stage import Stage
from raypipe.search.study import known_trials, open_storage
from raypipe.search.tuner import run_search
from raypipe.training.monitor import read_metrics
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
from tests import raytools
from tests.raytools import TINY, flags, outcome, started, tiny, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
optuna.logging.set_verbosity(optuna.logging.ERROR)

STEPS, EVERY = 300, 50
LONG = {"search.flow.trials": 3, "search.flow.steps": STEPS, "search.rungs": 2, "train.checkpoint_every": EVERY}
"""Trials of a few seconds, with rungs at steps 100 and 300 and checkpoints between them."""
DRIVE = "import sys; from tests.test_survival import drive; drive(*sys.argv[1:])"


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    path = raytools.save_autoencoder(tmp_path_factory.mktemp("survival") / "autoencoder")
    return TINY | LONG | {"autoencoder.path": str(path)}


@pytest.fixture(scope="module")
def prepared(two_cpus, values, tmp_path_factory):
    """A storage root with dataset, autoencoder and latents, which every test copies."""
    storage = tmp_path_factory.mktemp("prepared") / "storage"
    train.prepare(tiny(**values | {"name": "demo"}), Workspace(storage, "demo"))
    return storage


@pytest.fixture
def storage(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "storage")
    return tmp_path / "storage"


def make_stage(storage, values, name="demo", **more):
    return Stage(tiny(**values | more | {"name": name}), Workspace(Path(storage), name), "flow")


def drive(storage, values, name="demo"):
    """A search in a process of its own, under the lock that the commands take."""
    stage = make_stage(storage, json.loads(values), name)
    with hold(stage.workspace), live_page(stage.workspace):
        start_ray()
        run_search(stage)


def study(workspace):
    return known_trials(open_storage(workspace.study), "flow") if workspace.study.exists() else []


def saved_step(workspace, name):
    folder = standing(workspace.run("flow", name))
    try:
        return checkpoint.read_meta(folder).step if (folder / "config.json").is_file() else 0
    except (OSError, ValueError):  # it is replaced this moment
        return 0


def kept_rows(workspace, name):
    """What a trial logged up to its last checkpoint; the rows hold speeds, which no second run repeats."""
    step = saved_step(workspace, name)
    return [row for row in read_metrics(workspace.run("flow", name)) if row["step"] <= step]


def check_whole(workspace, trials):
    """Exactly the trials asked for, each over, in the study as in the table, and nothing torn."""
    known = study(workspace)
    assert [trial.state for trial in known] == [TrialState.COMPLETE] * trials
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    assert sorted({row["trial"] for row in rows}) == [f"flow-{i:02d}" for i in range(trials)]
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    assert len({(row["trial"], row["step"]) for row in rows}) == len(rows)
    for trial in known:
        scores = {row["step"]: row["objective"] for row in rows if row["trial"] == f"flow-{trial.number:02d}"}
        assert scores == pytest.approx(trial.intermediate_values)
    raytools.check_files(workspace.folder)


def check_kept(workspace, before):
    """No step up to the checkpoints of `before` was trained again."""
    for name, rows in before.items():
        assert rows and read_metrics(workspace.run("flow", name))[: len(rows)] == rows
        steps = [row["step"] for row in read_metrics(workspace.run("flow", name))]
        assert steps == sorted(set(steps))


def test_kill_9_of_the_driver(head, two_cpus, storage, values, tmp_path):
    workspace = Workspace(storage, "demo")
    with started(tmp_path / "first", ["-c", DRIVE, storage, json.dumps(values)], storage, **head.variables) as process:

        def half_way():
            assert process.popen.poll() is None, process.err[-3000:]
            known = study(workspace)
            return any(t.state.is_finished() for t in known) and any(
                not t.state.is_finished() and saved_step(workspace, f"flow-{t.number:02d}") for t in known
            )

        wait_for(lambda: study(workspace), 300)
        argv = ["--storage", storage, "--name", "demo", "--resume"]
        assert outcome(partial(tune.search, "flow"), "tune_flow.py", argv) == 2  # while it runs
        wait_for(half_way, 300)
        os.kill(process.popen.pid, signal.SIGKILL)
        wait_for(lambda: not head.trials(), 60)
    known = {f"flow-{t.number:02d}": t for t in study(workspace)}
    ended = [name for name, trial in known.items() if trial.state.is_finished()]
    written = {name: (workspace.run("flow", name) / "model.safetensors").stat().st_mtime_ns for name in ended}
    before = {name: kept_rows(workspace, name) for name in known if saved_step(workspace, name)}
    assert ended and set(before) > set(ended)  # one was cut off on its way

    page = workspace.folder / "report.html"
    left = page.read_text()  # up to ten seconds older than the kill, so trials may be missing
    assert "ended or was killed" in left and "--name demo --resume" in left and "</html>" in left

    with hold(workspace), live_page(workspace):
        run_search(make_stage(storage, values))
    check_whole(workspace, 3)
    assert "Nothing runs this search" in page.read_text() and "<b>3 of " in page.read_text()
    assert {n: (workspace.run("flow", n) / "model.safetensors").stat().st_mtime_ns for n in ended} == written
    check_kept(workspace, before)
    after = {f"flow-{t.number:02d}": t for t in study(workspace)}
    for name, trial in known.items():  # rungs that were passed stand
        assert trial.intermediate_values.items() <= after[name].intermediate_values.items()


@contextmanager
def killing(head, workspace, actor, steps) -> Iterator[dict[str, object]]:
    """Kill one process of the actor as soon as the first trial, which trains for `steps`, has a checkpoint."""
    seen: dict[str, object] = {}
    over = threading.Event()

    def watch():
        victims: list[int] = []
        while not over.wait(0.01):
            victims = [pid for pid in victims or head.process.family() if actor in raytools.title(pid)]
            if victims and 0 < saved_step(workspace, "flow-00") < steps:
                seen["before"] = {"flow-00": kept_rows(workspace, "flow-00")}
                os.kill(victims[0], signal.SIGKILL)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@pytest.mark.long
def test_kill_9_of_a_trial(head, two_cpus, storage, values):
    stage = make_stage(storage, values, **{"search.flow.trials": 1, "search.flow.steps": 3 * STEPS})
    with killing(head, stage.workspace, "ray::StageTrial", 3 * STEPS) as seen:
        run_search(stage)
    check_whole(stage.workspace, 1)
    check_kept(stage.workspace, seen["before"])


@pytest.mark.long
def test_kill_9_of_a_worker_of_a_trial(head, two_cpus, storage, values):
    """Of two. Ray Train begins again at its last checkpoint; here the rung, at least, is on record."""
    stage = make_stage(storage, values, **{"search.flow.trials": 1, "search.workers_per_trial": 2})
    with killing(head, stage.workspace, "ray::RayTrainWorker", STEPS) as seen:
        run_search(stage)
    check_whole(stage.workspace, 1)
    check_kept(stage.workspace, seen["before"])


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.long
def test_a_full_disk_at_a_checkpoint(two_cpus, storage, values):
    """A disk of its own for the trials, filled up; what ran goes on once there is room again."""
    stage = make_stage(storage, values, **{"search.flow.trials": 2})
    place = stage.workspace.folder / "flow"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine mounts no disks")
    try:
        room = shutil.disk_usage(place).free
        (place / "filler").write_bytes(bytes(room - 40_000))  # not enough for a checkpoint
        with pytest.raises(
            ConfigError, match=r"no space left on the disk; free some space and run .* --resume to continue"
        ):
            run_search(stage)
        states = [trial.state for trial in study(stage.workspace)]
        assert states and set(states) <= {TrialState.RUNNING, TrialState.WAITING}  # none is lost
        (place / "filler").unlink()
        run_search(stage)
        check_whole(stage.workspace, 2)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_machine_of_two_is_lost(storage, values, tmp_path, monkeypatch):
    """Two nodes of one CPU, a trial on each; one node vanishes."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    workspace = Workspace(storage, "demo")
    cluster = Cluster(initialize_head=True, connect=False, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        other = cluster.add_node(num_cpus=1)
        argv = ["-c", DRIVE, storage, json.dumps(values)]
        with started(tmp_path / "search", argv, storage, RAY_ADDRESS=cluster.address) as process:

            def both_run():
                assert process.popen.poll() is None, process.err[-3000:]
                return saved_step(workspace, "flow-00") and saved_step(workspace, "flow-01")

            wait_for(both_run, 300)
            before = {name: kept_rows(workspace, name) for name in ("flow-00", "flow-01")}
            cluster.remove_node(other, allow_graceful=False)
            assert process.finish(300) == 0, process.err[-3000:]
    finally:
        cluster.shutdown()
    check_whole(workspace, 3)
    check_kept(workspace, before)


@pytest.mark.long
def test_more_trials_go_on_from_a_finished_stage(two_cpus, storage, values):
    """Its trials and the finalists that were trained stand."""
    short = {"search.flow.steps": 12, "search.rungs": 1, "search.top_k": 1, "search.finalist_seeds": 1}
    workspace = Workspace(storage, "demo")
    argv = ["--storage", storage, "--name", "demo", "--resume", *flags(values | short | {"search.flow.trials": 2})]
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", argv) == 0

    def weights():
        found = (storage / "demo" / "flow").glob("*/model.safetensors")
        return {path: path.stat().st_mtime_ns for path in found}

    before = weights()
    more = ["--storage", storage, "--name", "demo", "--resume", "--trials", "4", *flags(short)]
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", more) == 0
    check_whole(workspace, 4)
    assert before.items() <= weights().items()
    assert workspace.experiment().search.flow.trials == 4
    assert {f.trial for f in read_finalists(workspace, "flow")} >= {"flow-00"}
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", more) == 2  # nothing is left to do


@pytest.mark.long
def test_two_searches_at_once_finish_on_two_cpus(head, storage, values, tmp_path):
    """On one Ray, each in its own experiment, with as many trials at a time as there are CPUs."""
    shutil.copytree(storage / "demo", storage / "second")
    short = json.dumps(values | {"search.flow.steps": 12, "search.rungs": 1})
    with (
        started(tmp_path / "one", ["-c", DRIVE, storage, short], storage, **head.variables) as one,
        started(tmp_path / "two", ["-c", DRIVE, storage, short, "second"], storage, **head.variables) as two,
    ):
        assert one.finish(300) == 0, one.err[-3000:]
        assert two.finish(300) == 0, two.err[-3000:]
    check_whole(Workspace(storage, "demo"), 3)
    check_whole(Workspace(storage, "second"), 3)
