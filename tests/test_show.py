"""`python -m raypipe.show` on a finished search, on one cut off in the middle, and --watch until a search ends."""

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from functools import partial

import pyarrow.parquet as pq
import pytest

from raypipe import show
from raypipe.search import records
from raypipe.workspace.claims import hold
from tests.raytools import ROOT, outcome
from tests.recordedtools import cut, unpack

shown = partial(outcome, show.main, show.PROG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def killed(tmp_path):
    return cut(tmp_path / "storage")


def cells(text, first):
    """The words of the row of a table that begins with a word."""
    return next(line for line in text.splitlines() if line.split()[:1] == [first]).split()


def test_a_finished_search_has_its_best_trials_and_what_was_chosen(finished, capsys):
    assert shown(["--storage", finished.storage]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{finished.folder}: finished\n")
    assert cells(text, "stage") == ["stage", "finished", "stopped", "failed", "interrupted", "left", "finalists"]
    assert cells(text, "flow") == ["flow", "2", "1", "0", "0", "0", "retrained"]
    assert cells(text, "diffusion") == ["diffusion", "1", "1", "0", "0", "0", "retrained"]
    scores = {row["trial"]: row["objective"] for row in pq.read_table(finished.trials).to_pylist()}
    best = min(scores, key=scores.get)
    lines = text.splitlines()
    first = lines[next(i for i, line in enumerate(lines) if line.startswith("best ")) + 2]
    assert first.split()[0] == best and f" {scores[best]:.3f} +- " in first
    tested = pq.read_table(finished.evaluation / "combinations.parquet").to_pylist()
    chosen = {row["split"]: row for row in tested if row["chosen"]}
    assert cells(text, "chosen") == ["chosen", "flow", "flow-02,", "diffusion", "constant"]
    assert cells(text, "test")[2] == f"{chosen['test']['crps_ratio']:.3f}"
    assert chosen["test"]["crps_ratio_pixels"] > 1 and "no better than repeating the last frame" in text
    assert cells(text, "next") == ["next", *f"python -m raypipe.generate --model {finished.folder}".split()]
    assert "to do" not in text


def test_a_killed_search_says_what_is_left_and_why_trials_failed(killed, capsys):
    rows = records.read_rows(killed.trials)
    failed = {"status": "failed", "objective": None, "error": "the loss is nan\nby step 7"}
    records.write_rows(killed.trials, [row | (failed if row["trial"] == "flow-01" else {}) for row in rows])
    assert shown([killed.folder]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{killed.folder}: not running\n")
    assert cells(text, "flow") == ["flow", "2", "0", "1", "0", "0", "retrained"]
    assert cells(text, "diffusion") == ["diffusion", "1", "0", "0", "1", "0", "-"]
    assert re.search(r"^failed +flow-01: the loss is nan by step 7$", text, re.MULTILINE)
    assert re.search(r"^to do +diffusion: 1 trial, retraining of the finalists; evaluation$", text, re.MULTILINE)
    assert not re.search(r"^(chosen|running)", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["dmo"], r"NAME: no search 'dmo' in .* \(it holds the experiment demo\); did you mean 'demo'\?"),
        (["--storage", "nowhere"], r"nowhere: no search in this folder \(it holds no experiments\); run experiments/"),
        (["--storage", "what://bucket/x"], "what://bucket/x: cannot be opened"),
        (["--wach"], "unrecognized arguments: --wach; see --help"),
        (["demo", "--watch", "3"], "unrecognized arguments: 3; see --help"),
    ],
)
def test_bad_input_is_one_line(finished, tmp_path, monkeypatch, capsys, argv, why):
    monkeypatch.setenv("RAYPIPE_STORAGE", str(finished.storage))
    monkeypatch.chdir(tmp_path)
    assert shown(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"raypipe\.show: error: .*{why}.*\n", err)


def test_a_damaged_table_is_one_line(killed, capsys):
    killed.trials.write_bytes(b"PAR1")
    assert shown([killed.folder]) == 2
    assert re.fullmatch(r"raypipe\.show: error: .*trials\.parquet: not a Parquet table .*\n", capsys.readouterr().err)


def test_watching_shows_what_changes_and_ends_with_the_search(killed, monkeypatch, capsys):
    rows = records.read_rows(killed.trials)
    better = next(row for row in rows if row["trial"] == "diffusion-00") | {"trial": "diffusion-01", "objective": 0.1}
    with ExitStack() as running:
        running.enter_context(hold(killed))
        steps = iter([lambda: None, lambda: records.write_rows(killed.trials, [*rows, better]), running.close])
        monkeypatch.setattr(show.time, "sleep", lambda seconds: next(steps)())
        assert shown(["--watch", killed.folder]) == 0
    texts = capsys.readouterr().out.split(f"{killed.folder}: ")[1:]
    assert [text.split()[0] for text in texts] == ["running", "running", "not"]  # the second look saw nothing new
    assert "\ndiffusion-01 " not in texts[0] and "running  diffusion-01 at step 4 of 12" in texts[0]
    assert cells(texts[1], "diffusion-01")[3] == cells(texts[2], "diffusion-01")[3] == "0.100"
    assert "to do" in texts[0] and "next" not in texts[0] and "next" in texts[2]


def test_watching_on_a_terminal_redraws_what_fits_until_ctrl_c(killed, monkeypatch, capsys):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(show.time, "sleep", interrupt)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("LINES", "8")
    with hold(killed):
        assert shown(["--watch", killed.folder]) == 130
    out, err = capsys.readouterr()
    assert err == "" and out.startswith(show.REDRAW)
    lines = out.removeprefix(show.REDRAW).splitlines()
    assert len(lines) == 7 and max(map(len, lines)) == 30


def test_a_process_of_its_own_takes_less_than_two_seconds_of_cpu(killed):
    code = "import os, sys; pid, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0); "
    code += "print(status, used.ru_utime + used.ru_stime)"
    argv = [sys.executable, "-c", code, sys.executable, "-m", "raypipe.show", str(killed.folder)]
    seconds = []
    for _ in range(3):  # a busy machine takes up to twice the time
        out = subprocess.run(argv, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=True).stdout
        status, used = out.splitlines()[-1].split()
        assert status == "0"
        seconds.append(float(used))
    assert min(seconds) < 2
