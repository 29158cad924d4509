"""experiments/slurm.sbatch on two nodes in namespaces, with stand-ins for srun and scontrol."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cloud import tools
from tests.raytools import ROOT

pytestmark = [
    pytest.mark.cloud,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(tools.missing()), reason=f"two Slurm nodes: {tools.missing()}"),
]

JOBS = (71017, 71018)
"""Numbers of two jobs; the second one has been requeued."""
SLURM = Path(__file__).with_name("slurm")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """The answers and exit codes of two jobs that share both nodes."""
    folder = tmp_path_factory.mktemp("slurm")
    private = [f"/tmp/ray-{job}" for job in JOBS]  # where the script has Ray's files, on the disk of each node
    commands = []
    for job, restarts in zip(JOBS, (0, 1), strict=True):
        script = f"bash {ROOT}/experiments/slurm.sbatch python {SLURM}/hosts.py pipeline > {folder}/{job}.out 2>&1"
        commands.append(
            f"export SLURM_JOB_ID={job} SLURM_RESTART_COUNT={restarts}; {script}; echo $? > {folder}/{job}.rc"
        )
    environ = {
        "PATH": f"{SLURM}:{folder}:{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "PRIVATE": " ".join(private),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "RAY_START_OPTIONS": "--num-cpus=2 --object-store-memory=100000000",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    (folder / "ray").write_text(f'#!/bin/sh\nexec {sys.executable} -m ray.scripts.scripts "$@"\n')
    (folder / "ray").chmod(0o755)
    namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    inside = ["bash", str(SLURM / "nodes.sh"), str(folder), *commands]
    with (folder / "nodes.log").open("wb") as log:
        popen = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, *inside],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        popen.wait(600)
    finally:
        popen.kill()
        popen.wait()
        for path in private:
            os.rmdir(path)
    found = {}
    for job in JOBS:
        out = (folder / f"{job}.out").read_text()
        answers = [line.removeprefix("ANSWER ") for line in out.splitlines() if line.startswith("ANSWER ")]
        assert len(answers) == 1, f"{out[-4000:]}\n{(folder / 'nodes.log').read_text()}"
        found[job] = json.loads(answers[0]) | {"exit": int((folder / f"{job}.rc").read_text()), "out": out}
    return found


@pytest.mark.parametrize("job", JOBS)
def test_the_command_runs_once_on_all_nodes(jobs, job):
    answer = jobs[job]
    assert answer["driver"] == "node1" and answer["hosts"] == ["node1", "node2"]
    assert answer["nodes"] == 2 and answer["job"] == str(job)


@pytest.mark.parametrize("job", JOBS)
def test_the_exit_code_is_that_of_the_command(jobs, job):
    assert jobs[job]["exit"] == 3, jobs[job]["out"]


def test_a_requeued_job_resumes(jobs):
    assert jobs[JOBS[0]]["argv"] == ["pipeline"]
    assert jobs[JOBS[1]]["argv"] == ["pipeline", "--resume"]


def test_nothing_is_left(jobs):
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if b"STAND_IN_NODES" in _read(path)]
    assert left == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if os.access(path, os.R_OK) else b""
    except OSError:
        return b""
