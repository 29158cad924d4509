"""The benchmarks run, and print what they should. How fast they are is not tested: machines differ."""

import json
import os
import subprocess
import sys

import pytest

from tests.raytools import ROOT

RATES = ("windows_per_second", "baseline_windows_per_second")


def lines(*argv):
    done = subprocess.run(
        [sys.executable, "experiments/benchmarks/loader.py", *argv],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(line, name, processes, rates=RATES):
    ours, baseline = (line[rate] for rate in rates)
    assert (line["name"], line["processes"]) == (name, processes)
    assert ours > 0 and baseline > 0
    assert line["ratio"] == pytest.approx(ours / baseline, rel=0.02, abs=0.01)
    assert isinstance(line["against"], str) and line["against"]


def test_windows_against_the_published_loader():
    found = lines("--quick", "--only", "windows", "--clips", "3")
    for line, processes in zip(found, (1, 2), strict=True):
        check(line, "windows", processes)
        assert (line["window"], line["clips"], line["baseline_windows"]) == ([5, 64, 64, 3], [3, 120], 64)
        assert line["windows"] % 64 == 0
        assert line["at_least"] == 15
        assert line["ratio"] > 1


def test_latents_against_memmap():
    found = lines("--quick", "--only", "latents")
    for line, name in zip(found, ("latents", "latents", "latents, read alone"), strict=True):
        check(line, name, 1)
        assert (line["window"], line["batch"], line["windows"]) == ([5, 4, 8, 8], 16, 6 * 116)
    assert [line.get("at_least") for line in found] == [0.5, None, 0.5]


def test_conversion_against_the_published_way():
    found = lines("--quick", "--only", "conversion")
    for line, processes in zip(found, (1, 2), strict=True):
        check(line, "conversion", processes, ("frames_per_second", "baseline_frames_per_second"))
        assert (line["frames"], line["frame_shape"], line["at_least"]) == (200, [64, 64, 3], 5)


def test_growth_with_the_number_of_clips():
    found = lines("--quick", "--only", "growth")
    assert [line["clips"][0] for line in found] == [10, 20]
    assert found[0]["ratio"] == 1
    for line in found:
        check(line, "growth", 1)
        assert line["first_epoch_windows"] == 8 * line["clips"][0]
        assert line["open_seconds"] > 0 and line["first_epoch_seconds"] > 0
        assert line["process_mib"] > 10 and line["open_mib"] > 0 and line["epoch_mib"] > 0
