"""The training benchmark runs, and prints what it should. How fast it is is not tested: machines differ."""

import json
import os
import subprocess
import sys

import pytest

from tests.raytools import ROOT
from tests.scripts import load_script


def lines(part, **variables):
    done = subprocess.run(
        [sys.executable, "experiments/benchmarks/training.py", "--quick", "--only", part],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"} | variables,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for line in found:
        assert line["name"] == part and line["against"] and line["ratio"] > 0
        assert line["shape"] == "tiny" and line["threads"] == 1
    return found


def test_steps_from_the_cache():
    (line,) = lines("cache")
    assert line["at_least"] == 3
    assert line["ratio"] == pytest.approx(line["baseline_seconds"] / line["seconds"], rel=0.01)
    assert line["ratio"] > 1  # encoding is most of the work, at any size


def test_operations_of_a_step():
    """Three times the forward pass's, which is at least two for each weight of the tokens' blocks."""
    (line,) = lines("flops")
    windows, tokens, width = 16, 4 * 4, 16
    blocks = 3 * 12 * width**2 + 2 * width**2  # three blocks, and the map that merges the kept output
    assert line["flops_per_step"] > 3 * 2 * windows * tokens * blocks
    assert line["flops_per_step"] < 3 * 2 * windows * tokens * blocks * 3
    assert line["gflops"] == pytest.approx(line["flops_per_step"] / line["seconds"] / 1e9, rel=0.01)


def test_profile():
    (line,) = lines("profile")
    assert sum(line["shares"].values()) == pytest.approx(1, abs=0.01)
    assert line["shares"]["linear maps"] > 0 and line["shares"]["attention"] > 0


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.long
def test_torch_trainer_against_the_bare_loop(head):
    (line,) = lines("trainer", **head.variables)
    assert (line["steps"], line["at_least"]) == (12, 0.97)
    assert line["ratio"] == pytest.approx(line["steps_per_second"] / line["baseline_steps_per_second"], rel=0.01)


def test_batched_trials_against_one_after_the_other(capsys):
    """The script itself holds that both have the same losses."""
    assert load_script("benchmarks/ensemble").main(["--models", "2", "--batch", "2", "--turns", "1"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["name"], line["models"], line["batch"]) == ("ensemble", 2, 2)
    assert line["ratio"] == pytest.approx(line["seconds"][0] / line["seconds"][1], rel=0.05, abs=0.002)


@pytest.mark.long
def test_the_allocator_in_processes_of_their_own(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert load_script("benchmarks/allocator").main(["--turns", "1", "--steps", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in found] == ["allocator, training", "allocator, forecast"]
    for line in found:
        assert line["ratio"] == pytest.approx(line["milliseconds"][0] / line["milliseconds"][1], rel=0.02)
