"""`ray job submit --working-dir . -- python -m raypipe.evaluate`, on a cluster that asks for a token."""

import json
import os
import shutil
import socket
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

from raypipe.search import records
from tests.raytools import ROOT, complete, finished_pipeline, started, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
RAY = ["-m", "ray.scripts.scripts"]


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def status(address):
    """Of the jobs' interface, for someone without a token; None while it is not there."""
    try:
        return urllib.request.urlopen(f"{address}/api/jobs/", timeout=5).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture
def head(tmp_path):
    """A head as `ray start` makes it: its address for jobs, and the variables with which one may use it."""
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # sockets need a short path
    token = tmp_path / "token"
    token.write_text("7c0ffee7" * 8)
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_ADDRESS": ""}
    variables["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # a job's `python` is the head's
    port, dashboard, *others = free_ports(7)
    names = ["dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port"]
    names += ["metrics-export-port", "ray-client-server-port"]
    argv = [
        *RAY, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={temporary}", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        *(f"--{name}={number}" for name, number in zip(names, others, strict=True)),
    ]  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    try:
        with started(tmp_path / "head", argv, tmp_path / "unused", **variables) as process:
            wait_for(lambda: process.popen.poll() is not None or status(address), 90)
            assert process.popen.poll() is None, process.err + process.out
            yield address, variables
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def checkout(tmp_path):
    """The repository as one would clone it."""
    names = ["raypipe", "experiments", "pyproject.toml", "requirements.txt", ".gitignore"]
    for path in map(ROOT.joinpath, names):
        if path.is_dir():
            shutil.copytree(path, tmp_path / "checkout" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tmp_path / "checkout" / path.name)
    return tmp_path / "checkout"


def test_the_evaluation_runs_as_a_ray_job(head, checkout, tmp_path, tmp_path_factory):
    address, variables = head
    assert status(address) == 401  # without the token
    storage = tmp_path / "storage"
    shutil.copytree(finished_pipeline(tmp_path_factory.getbasetemp()).storage, storage)
    table = storage / "demo" / "evaluation" / "combinations.parquet"
    before = records.read_rows(table)
    runtime = json.dumps({"env_vars": {"RAYPIPE_STORAGE": str(storage)}})
    submit = [*RAY, "job", "submit", "--address", address, "--working-dir", ".", "--runtime-env-json", runtime]
    process = complete(
        tmp_path / "job",
        [*submit, "--", "python", "-m", "raypipe.evaluate", "--again"],
        tmp_path / "unused",
        cwd=checkout,
        **variables,
    )
    assert "succeeded" in process.out + process.err
    assert f"evaluating {storage / 'demo'}" in process.out
    assert "persistence" in process.out and "climatology" in process.out
    assert str(storage / "demo" / "evaluation" / "report.html") in process.out
    after = records.read_rows(table)
    times = [[row["seconds_per_frame"] for row in rows if row["steps"]] for rows in (before, after)]
    assert times[0] != times[1]  # they were scored anew, to the same values
    scores = [{(row["split"], row["key"]): row["crps_ratio"] for row in rows} for rows in (before, after)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
