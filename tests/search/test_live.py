"""What a search shows on a terminal, and in a log file."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import ray
from ray.util.metrics import Gauge

from raypipe.config import Experiment
from raypipe.search import records
from raypipe.search.live import Live, Running
from raypipe.search.stage import Stage
from raypipe.search.trial_log import TrialLog
from raypipe.training.monitor import METRICS, log_folder
from raypipe.workspace.layout import Workspace


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_counts_and_the_table_is_for_a_terminal(terminal, monkeypatch):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    live = Live("flow", 8, 2)
    live.tell("best 0.412 (flow-01: s 0.1 nll)")
    live.show([Running("flow-04", 0.2, "mse", 120, 600, None), Running("flow-05", 0.0, None, 200, 600, 0.52)])
    live.ended()
    live.show([Running("flow-05", 0.0, None, 300, 600, 0.52)])
    live.close()
    text = stream.getvalue()
    assert "search flow" in text and "2/8" in text and "best 0.412 (flow-01: s 0.1 nll)" in text
    shown = [word in text for word in ("flow-04", "mse", "120/600", "objective", "300/600", "0.520")]
    assert shown == [stream.isatty()] * len(shown)
    if not stream.isatty():
        assert "\x1b" not in text


def test_the_line_says_the_best_and_how_many_failed(tmp_path, monkeypatch):
    """Of its own stage; a refit is no trial, and a trial with two rungs fails once."""
    monkeypatch.setattr(sys, "stderr", Stream(True))
    place = Workspace(tmp_path, "demo")
    common = {"stage": "flow", "step": 300, "refit": False, "status": "finished", "noise_std": 0.1, "loss": "nll"}
    rows = [
        common | {"trial": "flow-00", "objective": 0.7},
        common | {"trial": "flow-01", "objective": 0.6, "loss": "mse", "status": "stopped"},
        common | {"trial": "flow-02", "objective": 0.5, "status": "failed"},
        common | {"trial": "flow-02", "objective": None, "status": "failed", "step": 900},
        common | {"trial": "flow-03", "objective": None, "status": "failed"},
        common | {"trial": "flow-00-s0", "objective": 0.4, "refit": True},
        common | {"trial": "denoiser-00", "objective": None, "status": "failed", "stage": "denoiser"},
    ]
    records.write_rows(place.trials, rows)
    log = TrialLog(Stage(Experiment(), place, "flow"), 8, 4)
    log.setup()
    log.close()
    assert "4/8" in sys.stderr.getvalue()
    assert "best 0.600 (flow-01: s 0.1 mse), 2 failed" in sys.stderr.getvalue()


def test_the_speed_that_is_shown_is_that_of_the_running_trials_together(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(Gauge, "set", lambda gauge, value, tags=None: shown.append((gauge.info, value)))
    place = Workspace(tmp_path, "demo")
    trials = []
    for name, status, step in (("flow-00", "RUNNING", 20), ("flow-01", "RUNNING", 6), ("flow-02", "PAUSED", 50)):
        path = log_folder(place.run("flow", name)) / METRICS
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"step": step, "loss": 0.5, "seconds": 4.0}) + "\n")
        trials.append(SimpleNamespace(status=status, config={"trial": name, "values": {}}, last_result={}))
    log = TrialLog(Stage(Experiment(), place, "flow"), 8, 0)
    log.setup()
    log.on_step_end(0, trials)
    log.close()
    speeds = [(info["default_tags"], value) for info, value in shown if info["name"] == "raypipe_steps_per_second"]
    assert speeds == [({"experiment": "demo", "stage": "flow"}, 6.5), ({"experiment": "demo", "stage": "flow"}, 0.0)]


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_a_search_that_stands_still_says_what_it_waits_for(tmp_path, monkeypatch, status):
    stream, now = Stream(False), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", dict)
    log = TrialLog(Stage(Experiment(), Workspace(tmp_path, "e"), "flow"), 8, 0)
    log.setup()
    values = {"train.noise_std": 0.1, "train.loss": "nll"}
    trial = SimpleNamespace(status=status, config={"trial": "flow-03", "values": values}, last_result={})
    for now[0] in range(30):
        log.on_step_end(0, [trial])
    log.close()
    line = "waiting for 1 trial with 1 CPU each: the cluster has 2 CPUs (0 free)"
    assert stream.getvalue().count(line) == 1
    steps = Experiment().search.flow.steps
    assert (f"flow-03 at step 0 of {steps}" in stream.getvalue()) == (status == "RUNNING")
