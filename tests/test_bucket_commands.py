"""Storage in a bucket, from the commands: what they refuse, and a head that is killed and goes on elsewhere."""

import os
import signal
import time
from pathlib import Path

import pytest

import raypipe
from experiments import pipeline
from raypipe import evaluate, generate, show, train, tune
from raypipe.common.errors import UserError
from raypipe.distributed import capacity
from raypipe.search.study import has_ended, read_trials
from raypipe.workspace.bucket import places
from raypipe.workspace.layout import Workspace
from tests import raytools, s3tools
from tests.raytools import ROOT, TINY, flags, free_ports, outcome, started, wait_for
from tests.workspace.test_bucket import mirror_at

URI = "s3://mine/storage"
COMMANDS = {
    "pipeline": (pipeline.main, []),
    "tune": (tune.main, ["flow"]),
    "train": (train.main, ["--run-name", "f-01-nll"]),
    "evaluate": (evaluate.main, []),
    "generate": (generate.main, []),
    "show": (show.main, []),
}


@pytest.fixture(scope="module")
def server():
    with s3tools.s3_server("mine") as address:
        yield address


@pytest.fixture
def here(server, tmp_path, monkeypatch):
    """This process's access to the bucket, on a machine with an empty home."""
    for name, value in s3tools.variables(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capfd, command, uri=URI):
    """The one line with which a command ends, within ten seconds."""
    main, argv = COMMANDS[command]
    begin = time.monotonic()
    assert outcome(main, "prog", [*argv, "--storage", uri]) == 2
    assert time.monotonic() - begin < 10
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "attempt" not in line or "error:" in line]
    assert out == "" and len(lines) == 1 and "MARKED" not in err, err
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_bucket(here, capfd, command):
    assert "s3://gone/storage: no such bucket" in refusal(capfd, command, "s3://gone/storage")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_refused_key(here, server, capfd, command):
    s3tools.authentication(server, "0")
    try:
        assert "s3://mine/storage: access denied" in refusal(capfd, command)
    finally:
        s3tools.authentication(server, "inf")


@pytest.mark.parametrize(
    "command", [c if c == "pipeline" else pytest.param(c, marks=pytest.mark.long) for c in COMMANDS]
)
def test_nobody_there(here, capfd, monkeypatch, command):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert "s3://mine/storage: cannot be read after" in refusal(capfd, command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_secret_in_the_uri_is_not_repeated(here, capfd, command):
    assert "contains a secret" in refusal(capfd, command, "s3://key:MARKED@mine/storage")


def test_nothing_there_yet(here, capfd):
    assert "no finished search in 's3://mine/empty'" in refusal(capfd, "evaluate", "s3://mine/empty")
    assert "s3://mine/empty: no search in this folder" in refusal(capfd, "show", "s3://mine/empty")
    assert "no experiment in s3://mine/empty" in refusal(capfd, "generate", "s3://mine/empty")


def test_more_than_one_node_is_refused(here, monkeypatch):
    workspace = Workspace(places.local_storage(URI), "e")
    monkeypatch.setattr(capacity, "scales_up", lambda: False)
    monkeypatch.setattr(capacity, "alive", lambda: capacity.Cluster([{"CPU": 2.0}], []))
    capacity.check_nodes(workspace)
    monkeypatch.setattr(capacity, "alive", lambda: capacity.Cluster([{"CPU": 2.0}] * 2, []))
    with pytest.raises(UserError, match="runs on one node, but the cluster has more"):
        capacity.check_nodes(workspace)
    capacity.check_nodes(Workspace(Path("folder"), "e"))


def ended(folder):
    """The trials that have ended, by stage and number, with their scores and times."""
    return {
        (stage, trial.number): (trial.values, trial.intermediate_values, trial.datetime_complete)
        for stage in ("flow", "denoiser", "diffusion")
        for trial in read_trials(folder / "study.log", stage)
        if has_ended(trial)
    }


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_a_killed_head_goes_on_elsewhere(here, server, monkeypatch, capfd):
    values = TINY | {"autoencoder.path": str(raytools.save_autoencoder(here / "autoencoder"))}
    argv = [ROOT / "experiments" / "pipeline.py", *flags(values), "--name", "e"]
    variables = s3tools.variables(server)

    with started(here / "first", argv, URI, HOME=str(here / "a"), **variables) as process:
        there = mirror_at(here / "looked", URI)

        def begun():
            assert process.popen.poll() is None, process.err[-4000:]
            there.look()
            return ended(there.folder)

        wait_for(begun, 600)
        for pid in process.family():
            os.kill(pid, signal.SIGKILL)
        first = process.out + process.err
    lost = mirror_at(here / "lost", URI)
    lost.fetch()
    before = ended(lost.folder)
    assert before and not (lost.folder / "best").exists()

    again = [*argv[:1], "--name", "e", "--resume"]
    with started(here / "refused", again, URI, HOME=str(here / "b"), **variables) as process:
        assert process.finish() == 2
        assert process.err.count("\n") == 1 and "holds the lock of this experiment since" in process.err
    with started(here / "second", [*again, "--break-lock"], URI, HOME=str(here / "b"), **variables) as process:
        assert process.finish(900) == 0, process.err[-4000:]
        second = process.out + process.err
    assert "stored   s3://mine/storage/e" in second

    last = mirror_at(here / "last", URI)
    last.fetch()
    raytools.check_files(last.folder)
    after = ended(last.folder)
    assert {key: after[key] for key in before} == before
    assert sorted(after) == sorted(
        (stage, number)
        for stage in ("flow", "denoiser", "diffusion")
        for number in range(TINY[f"search.{stage}.trials"])
    )
    for stage, number in before:
        name = f"{stage}/{stage}-{number:02d}/config.json"
        assert (last.folder / name).stat().st_mtime_ns == (lost.folder / name).stat().st_mtime_ns

    monkeypatch.setenv("HOME", str(here / "c"))
    for uri in (f"{URI}/e", f"{URI}/e/best"):
        assert raypipe.load_predictor(uri).manifest.flow is not None
    capfd.readouterr()
    assert outcome(show.main, "show", ["--storage", URI]) == 0
    assert "finished" in capfd.readouterr().out
    assert outcome(generate.main, "generate", ["--storage", URI, "--frames", "2"]) == 0
    assert list(here.glob("*-prediction.mp4"))
    monkeypatch.setenv("HOME", str(here / "d"))
    view = raypipe.open_search(f"{URI}/e")
    assert view.state == "finished" and view.trials.num_rows >= len(after)
    assert view.predictor("flow-00").manifest.flow == "flow-00" and view.report().is_file()

    marked = (s3tools.KEY.encode(), s3tools.SECRET.encode())
    homes = [path.read_bytes() for home in "abcd" for path in (here / home).rglob("*") if path.is_file()]
    everything = [*s3tools.contents(server), first.encode(), second.encode(), *homes]
    assert len(everything) > 100 and not any(mark in text for mark in marked for text in everything)
