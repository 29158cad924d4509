"""The study as a file: what a crash leaves of it, and what counts."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from raypipe.search.artifacts import store_artifacts
from raypipe.search.study import (
    OTHER_AXES,
    REASON,
    count_ended,
    drop_running,
    ended_trials,
    importances,
    known_trials,
    open_storage,
    rung_scores,
)
from raypipe.workspace.layout import Workspace
from tests.raytools import wait_for

SPACE = {"x": FloatDistribution(0, 1)}


def begin(path, count):
    study = optuna.create_study(study_name="flow", storage=open_storage(path))
    return study, [study.ask(SPACE) for _ in range(count)]


def test_a_line_that_a_full_disk_cut_short_is_dropped(tmp_path):
    path = tmp_path / "study.log"
    study, trials = begin(path, 2)
    study.tell(trials[0], 0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":6,"worker')
    again = optuna.load_study(study_name="flow", storage=open_storage(path))
    again.tell(1, 0.4)
    assert [t.value for t in known_trials(open_storage(path), "flow")] == [0.5, 0.4]
    assert path.read_bytes().startswith(whole)


def test_what_was_left_running_ends_and_is_counted_but_not_what_never_began(tmp_path):
    path = tmp_path / "study.log"
    study, trials = begin(path, 3)
    trials[0].report(0.7, 100)
    study.tell(trials[0], 0.5)
    known = study.get_trials()
    drop_running(study, known[1:2], "its process failed")
    drop_running(study, known[2:], OTHER_AXES)
    known = known_trials(open_storage(path), "flow")
    assert [t.state for t in known] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert count_ended(known) == ended_trials(path, "flow") == 2
    assert rung_scores(known, "flow") == {"flow-00": {100: 0.7}}
    assert ended_trials(path, "denoiser") == ended_trials(tmp_path / "none.log", "flow") == 0


def test_an_axis_that_decides_is_important(tmp_path):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert importances(study) == {}
    study.optimize(lambda t: t.suggest_float("decides", 0, 1) + 0 * t.suggest_float("idle", 0, 1), 40)
    found = importances(study)
    assert found["decides"] > 0.8 > found["idle"]


@contextmanager
def dashboard(path: Path) -> Iterator[str]:
    """optuna-dashboard on a journal; gives the address of its interface for programs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("optuna-dashboard"), path, "--artifact-dir", path.with_name("artifacts")]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    log = path.with_name("dashboard.log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)

    def answers():
        assert process.poll() is None, log.read_text()
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(answers, 60)
        yield f"http://127.0.0.1:{port}/api/studies"
    finally:
        process.terminate()
        process.wait(20)


def get(address):
    with urlopen(address, timeout=20) as answer:
        return json.load(answer)


def test_optuna_dashboard_opens_the_journal(tmp_path):
    path = tmp_path / "study.log"
    study, trials = begin(path, 3)
    trials[0].report(0.7, 100)
    study.tell(trials[0], 0.5)
    study.tell(trials[1], 0.4)
    drop_running(study, study.get_trials(deepcopy=False)[2:], "the loss is nan")
    optuna.create_study(study_name="denoiser", storage=open_storage(path))
    (tmp_path / "forecast.gif").write_bytes(b"GIF89a of flow-01")
    store_artifacts(Workspace(tmp_path.parent, tmp_path.name), {("flow", "flow-01"): tmp_path / "forecast.gif"})
    whole = path.read_bytes()
    with dashboard(path) as address:
        studies = {found["study_name"]: found for found in get(address)["study_summaries"]}
        shown = get(f"{address}/{studies['flow']['study_id']}")
        (film,) = shown["trials"][1]["artifacts"]
        place = f"artifacts/{studies['flow']['study_id']}/{shown['trials'][1]['trial_id']}/{film['artifact_id']}"
        with urlopen(address.replace("api/studies", place), timeout=20) as answer:
            assert (answer.headers["Content-Type"], answer.read()) == ("image/gif", b"GIF89a of flow-01")
    assert film["filename"] == "forecast.gif" and shown["trials"][0]["artifacts"] == []
    assert sorted(studies) == ["denoiser", "flow"]
    assert studies["flow"]["directions"] == ["minimize"]
    assert [trial["state"] for trial in shown["trials"]] == ["Complete", "Complete", "Fail"]
    assert [trial.get("values") for trial in shown["trials"]] == [[0.5], [0.4], None]
    drawn = [trial["params"][0]["param_external_value"] for trial in shown["trials"]]
    assert [float(value) for value in drawn] == [trial.params["x"] for trial in study.get_trials()]
    assert shown["trials"][0]["intermediate_values"] == [{"step": 100, "value": 0.7}]
    assert {"key": REASON, "value": "the loss is nan"} in shown["trials"][2]["user_attrs"]
    assert [trial["number"] for trial in shown["best_trials"]] == [1]
    assert path.read_bytes() == whole  # it only looked
