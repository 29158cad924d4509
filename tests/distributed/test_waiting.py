"""A bar that stands still says what it waits for."""

import pytest
import ray

from raypipe.distributed import waiting
from raypipe.distributed.waiting import Waiting, waiting_for


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(waiting.time, "monotonic", lambda: now[0])
    return now


def test_the_first_line_comes_within_30_seconds_and_the_next_ones_later_and_later(clock):
    lines = []
    still = Waiting(lambda: f"at {clock[0]:g}", lines.append)
    for second in range(200):
        clock[0] = second
        still.look(7)
    assert lines == ["at 20", "at 60", "at 140"]
    still.look(8)
    assert lines[3:] == []
    for second in range(200, 221):
        clock[0] = second
        still.look(8)
    assert lines[3:] == ["at 219"]


def test_progress_is_quiet(clock):
    still = Waiting(lambda: pytest.fail("asked"))
    for second in range(100):
        clock[0] = second
        still.look(second // 10)


def test_the_line_goes_to_stderr(clock, capsys):
    still = Waiting(lambda: "waiting for 2 workers")
    for clock[0] in (0, 25):
        still.look(0)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "waiting for 2 workers\n")


def test_the_words(monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    monkeypatch.setattr(waiting, "scales_up", lambda: False)
    assert waiting_for("2 workers", {"CPU": 1, "GPU": 0}) == (
        "waiting for 2 workers with 1 CPU each: the cluster has 2 CPUs (1 free)"
    )
    monkeypatch.setattr(waiting, "scales_up", lambda: True)
    assert waiting_for("1 trial", {"CPU": 4, "GPU": 0.5}) == (
        "waiting for 1 trial with 4 CPUs and 0.5 GPUs each: the cluster has 2 CPUs (1 free), 0 GPUs (0 free), and adds "
        "nodes if they are needed"
    )
