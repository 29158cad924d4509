"""The page of a search while it runs, after a kill and at the end; what it costs; and that it never ends a search."""

import errno
import itertools
import json
import logging
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from types import SimpleNamespace

import optuna
import pytest
import yaml

from raypipe import config
from raypipe.report import live_page as module
from raypipe.report.live_page import LivePage, live_page
from raypipe.report.outlook import duration, measured_pace, reasons, seconds_left
from raypipe.report.state import read_overview
from raypipe.search import records
from raypipe.search.configured import trial_config
from raypipe.search.study import VALUES, open_storage, trial_name
from raypipe.training.monitor import METRICS, log_folder
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
from tests.raytools import tiny, wait_for
from tests.recordedtools import cut, unpack

REFRESH = '<meta http-equiv="refresh"'


@pytest.fixture
def killed(tmp_path):
    return cut(tmp_path / "storage")


class Text(HTMLParser):
    """The words of a page, without those of its style and its script, and the addresses that it loads or links to."""

    def __init__(self, page):
        super().__init__()
        self.words, self.addresses, self._inside = "", [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._inside = tag if tag in ("style", "script") else self._inside
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        self.words += "" if self._inside else data


def written(workspace, **how):
    page = LivePage(workspace)
    page.write(**how)
    return page.path.read_text()


def cells(page, trial):
    """The row of a trial in the table of its stage."""
    row = next(row for row in re.findall(r"<tr.*?</tr>", page) if f"<td>{trial}</td>" in row)
    return re.findall(r"<td.*?>(.*?)</td>", row)


def test_a_running_search_shows_its_stages_plots_and_trials_and_reloads(killed):
    metrics = log_folder(killed.run("diffusion", "diffusion-01")) / METRICS
    metrics.parent.mkdir(exist_ok=True)
    metrics.write_text('{"step": 3, "loss": 1.25, "grad_norm": 0.5}\n{"step": 4, "lo')
    rows = records.read_rows(killed.trials)
    failed = {"status": "failed", "objective": None, "error": "the loss is <b>nan</b>"}
    records.write_rows(killed.trials, [row | (failed if row["trial"] == "flow-02" else {}) for row in rows])
    with hold(killed):
        page = written(killed)
    text = Text(page)
    assert REFRESH in page and text.addresses == []
    assert "running diffusion stage" in text.words and "diffusion-01 at step 3 of 12" in text.words
    assert "5 of 6trials ended (0 not begun)" in text.words
    assert "on disk (" in text.words and "memory used (this host; " in text.words
    assert f"--storage {killed.storage} --name demo --resume goes on" in text.words
    for name in ("train.noise_std", "train.loss", "model.time_input", "train.learning_rate"):
        assert page.count(f'aria-label="{name}"') == (2 if name in ("train.loss", "model.time_input") else 3)
    assert page.count('aria-label="CRPS ratio at the rungs, by training step"') == 3
    assert cells(page, "diffusion-01")[1] == "running"
    assert cells(page, "diffusion-01")[-1] == "step 3, loss 1.25, gradient 0.5"
    assert cells(page, "flow-01")[2] == "asha: place 2 of 2 at step 6"
    assert cells(page, "flow-02")[2] == "the loss is &lt;b&gt;nan&lt;/b&gt;" and "<b>nan" not in page
    assert {"flow-02: failed", "diffusion-00: 0.818, finished"} < set(re.findall("<title>(.*?)</title>", page))


def test_a_killed_search_says_so_and_how_to_go_on(killed):
    page = written(killed)
    text = Text(page)
    assert REFRESH not in page and "Nothing runs this search." in text.words
    assert "not running" in text.words and cells(page, "diffusion-01")[1] == "interrupted"
    with hold(killed):  # of a command that is about to end
        page = written(killed, ended=True)
    assert "Nothing runs this search." in Text(page).words and cells(page, "diffusion-01")[1] == "interrupted"


def test_a_page_that_was_left_by_a_kill_can_be_told_by_its_age(killed):
    """It cannot be written any more: its text says what an old page means, and a script says it where one may run."""
    with hold(killed):
        page = written(killed)
    assert "If this is older than a minute, the search has ended or was killed: " in Text(page).words
    assert "if (age > 60)" in page and '.textContent = "not running"' in page


def test_a_finished_search_links_to_its_report(tmp_path):
    workspace = unpack(tmp_path)
    (workspace.evaluation / "report.html").write_text("")
    page = written(workspace)
    text = Text(page)
    assert text.addresses == ["evaluation/report.html"] and REFRESH not in page
    assert "finished" in text.words and "--resume" not in text.words
    assert not re.search(r"(http|file):|//\w", re.sub(r"http-equiv", "", page))


def test_it_is_written_while_a_search_runs_and_once_more_at_its_end(killed, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    study = killed.study.rename(killed.folder / "later")
    with hold(killed), live_page(killed) as page:
        assert not threading.Event().wait(0.3) and not page.path.exists()  # the search has no trial yet
        study.rename(killed.study)
        wait_for(page.path.is_file)
        assert REFRESH in page.path.read_text()
        page.path.unlink()
        wait_for(page.path.is_file)
    assert REFRESH not in page.path.read_text() and "Nothing runs this search" in page.path.read_text()
    assert list(killed.folder.glob(".*")) == []
    with pytest.raises(KeyboardInterrupt), hold(killed), live_page(killed):
        raise KeyboardInterrupt


def test_a_page_that_cannot_be_written_is_one_line_in_the_log_and_ends_nothing(killed, monkeypatch, caplog):
    monkeypatch.setattr(module, "SECONDS", 0.05)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)
    caplog.set_level(logging.WARNING)
    whole, before = killed.trials.read_bytes(), written(killed)
    with hold(killed), live_page(killed) as page:
        wait_for(lambda: page.path.read_text() != before)
        killed.trials.write_bytes(b"PAR1")
        wait_for(lambda: caplog.records)
        spent = page.seconds
        wait_for(lambda: page.seconds > spent)
        assert REFRESH in page.path.read_text()
    assert [r.name for r in caplog.records] == ["raypipe.report.live_page"]
    message = caplog.records[0].getMessage()
    assert re.fullmatch(
        r".*report\.html: not written \(.*trials\.parquet: not a Parquet.*\); the search goes.*", message
    )
    killed.trials.write_bytes(whole)
    page.write()
    assert "Nothing runs this search" in page.path.read_text()


def test_a_full_disk_is_said_once_and_leaves_the_last_page(killed, monkeypatch, caplog):
    page, before = LivePage(killed), written(killed)

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_atomic", full)
        page.write()
        page.write()
    assert ["No space left on device" in record.getMessage() for record in caplog.records] == [True]
    assert page.path.read_text() == before


def many_trials(storage, trials=200):
    """A flow stage with this many trials, of three rungs each, as a table, a study and logs."""
    workspace = Workspace(storage, "many")
    workspace.folder.mkdir(parents=True)
    settings = tiny(**{"name": "many", "search.flow.trials": trials, "search.rungs": 3, "search.flow.steps": 900})
    (workspace.folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(settings)))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, rows = optuna.create_study(study_name="flow", storage=open_storage(workspace.study)), []
    for i in range(trials):
        values = {"train.noise_std": 0.01 + 0.002 * i, "train.loss": ("nll", "mse")[i % 2]}
        values |= {"model.time_input": i % 3 == 0, "train.learning_rate": 1e-3 + 1e-5 * i}
        trial, name = study.ask(), trial_name("flow", i)
        trial.set_user_attr(VALUES, values)
        known = records.rung_row(trial_config(settings, "flow", values), name, 0, flow=None, score=None, default=None)
        steps = (100, 300, 900)[: 1 + i % 3]
        for step in steps:
            trial.report(0.5 + i / 1000 + 10 / step, step)
            row = known | {"step": step}
            row |= {"status": "finished" if step == 900 else "stopped", "refit": False, "values": json.dumps(values)}
            row |= {"objective": 0.5 + i / 1000 + 10 / step, "objective_se": 0.01}
            rows.append(row | {"seconds": 0.5 * step + 3 * (steps.index(step) + 1)})
        study.tell(trial, rows[-1]["objective"])
        log = log_folder(workspace.run("flow", name))
        log.mkdir(parents=True)
        logged = ({"step": s, "loss": 1 / s, "grad_norm": 0.5, "windows_per_second": 99.0} for s in range(30, 901, 30))
        (log / METRICS).write_text("".join(f"{json.dumps(line)}\n" for line in logged))
    records.write_rows(workspace.trials, rows)
    return workspace


def test_two_hundred_trials_stay_under_two_megabytes_and_one_percent(tmp_path, monkeypatch):
    workspace = many_trials(tmp_path)
    with hold(workspace):
        page = LivePage(workspace)
        page.write()
        assert page.path.stat().st_size < 2e6
        assert all(f"flow-{i:02d}" in page.path.read_text() for i in range(200))
        clock, pauses = itertools.count(0, 5), []
        monkeypatch.setattr(module.time, "thread_time", lambda: next(clock))
        page.keep(SimpleNamespace(wait=lambda seconds: pauses.append(seconds) or len(pauses) > 1))
    assert pauses == [10, 500]  # the second one after a write of five seconds


def test_the_time_left_is_that_of_the_rest_at_the_pace_so_far(tmp_path):
    workspace = many_trials(tmp_path, trials=8)
    rows = records.read_rows(workspace.trials)
    found = measured_pace(rows)
    assert (found.step, found.score) == pytest.approx((0.5, 3.0))
    assert measured_pace([row | {"refit": True} for row in rows]) is None
    whole = seconds_left(read_overview(workspace))
    (workspace.folder / "config.yaml").write_text(
        (workspace.folder / "config.yaml").read_text().replace("minutes: null", "minutes: 0.5")
    )
    assert seconds_left(read_overview(workspace)) == pytest.approx(whole)
    with hold(workspace):
        assert 20 < seconds_left(read_overview(workspace)) <= 30 < whole


def test_a_stopped_trial_is_placed_among_those_of_its_rung(tmp_path):
    overview = read_overview(many_trials(tmp_path, trials=7))
    assert reasons(overview)["flow-03"] == "asha: place 4 of 7 at step 100"
    assert reasons(overview)["flow-04"] == "asha: place 3 of 4 at step 300"
    assert "flow-05" not in reasons(overview)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5990, "100 min"), (6000, "1.7 h"), (172800, "2.0 days")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_it_reads_a_log_again_only_once_it_has_changed(killed, monkeypatch):
    page = LivePage(killed)
    page.write()
    shutil.rmtree(log_folder(killed.run("flow", "flow-00")))  # its log is gone, and with it its last line
    page.write()
    assert cells(page.path.read_text(), "flow-00")[-1] == ""
