"""The tables of a search, and who goes on to the next stage."""

import math
import os
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.config import ConfigError
from raypipe.metrics.ensemble import Score
from raypipe.search.finalists import Trial, last_rungs, select_finalists
from raypipe.search.records import read_rows, read_score, save_score, write_rows


def row(trial, step, objective, stage="flow", status="finished", noise_std=0.1, loss="nll"):
    names = ("stage", "trial", "step", "objective", "status", "noise_std", "loss")
    return dict(zip(names, (stage, trial, step, objective, status, noise_std, loss), strict=True))


def test_rows_come_back(tmp_path):
    path = tmp_path / "search" / "trials.parquet"
    rows = [
        {"trial": "flow-00", "step": 1, "objective": 0.5, "loss": "nll", "time_input": True, "steps": [1, 2]},
        {"trial": "flow-01", "step": 2, "objective": None, "error": "the loss is nan"},
        {"trial": "flow-02", "step": 3, "objective": 1, "loss": None},
    ]
    write_rows(path, rows)
    names = ["trial", "step", "objective", "loss", "time_input", "steps", "error"]
    assert pq.read_schema(path).names == names
    assert read_rows(path) == [{name: given.get(name) for name in names} for given in rows]
    assert os.listdir(path.parent) == ["trials.parquet"]
    write_rows(path, rows[:1])
    assert len(read_rows(path)) == 1


def test_no_table_has_no_rows_and_a_torn_one_is_named(tmp_path):
    path = tmp_path / "trials.parquet"
    assert read_rows(path) == []
    write_rows(path, [{"a": i} for i in range(100)])
    whole = path.read_bytes()
    for torn in (b"", whole[: len(whole) // 2], b"PAR1" + b"\0" * 40):
        path.write_bytes(torn)
        with pytest.raises(ConfigError) as error:
            read_rows(path)
        assert str(error.value).startswith(f"{path}: not a Parquet table") and "\n" not in str(error.value)


def test_rows_that_cannot_be_written_leave_the_old_table(tmp_path):
    path = tmp_path / "trials.parquet"
    write_rows(path, [{"a": 1}])
    with pytest.raises(Exception, match=r"(?i)object|convert"):
        write_rows(path, [{"a": 1}, {"a": object()}])
    assert read_rows(path) == [{"a": 1}]
    assert os.listdir(tmp_path) == ["trials.parquet"]


def test_scores_come_back(tmp_path):
    rng = np.random.default_rng(0)
    score = Score(*(rng.random((5, 3)) for _ in range(4)), members=7)
    folder = tmp_path / "flow" / "flow-00"
    assert read_score(folder, 40) is None
    save_score(folder, 40, score)
    found = read_score(folder, 40)
    for name in ("crps", "reference", "variance", "error"):
        assert np.array_equal(getattr(found, name), getattr(score, name))
    assert (found.members, found.ratio, found.spread_skill) == (7, score.ratio, score.spread_skill)
    assert read_score(folder, 80) is None
    assert not folder.exists()  # scores lie beside the model, which has a folder of its own
    save_score(folder, 40, Score(score.crps, score.reference, score.variance, score.error, 1))
    assert read_score(folder, 40).members == 1


def test_a_trial_ranks_by_its_last_rung():
    rows = [
        row("a", 100, 0.3),
        row("b", 100, 0.9, noise_std=0.2, loss="mse"),
        row("a", 300, 0.6),
        row("b", 300, 0.4, noise_std=0.2, loss="mse"),
        row("late", 300, 0.5),
        row("late", 100, 0.1),  # written late, but of an earlier rung
        row("stopped", 100, 0.7, status="stopped"),
        row("failed", 100, 0.01),
        row("failed", 200, None, status="failed"),
        row("nan", 300, math.nan),
        row("none", 300, None),
        row("other", 300, 0.0, stage="diffusion"),
    ]
    trials = last_rungs(rows, "flow")
    assert [trial.name for trial in trials] == ["b", "late", "a", "stopped"]
    assert trials[0] == Trial("b", 0.4, 0.2, "mse", rows[3])
    assert [trial.name for trial in last_rungs(rows, "diffusion")] == ["other"]
    assert last_rungs(rows, "denoiser") == []


def trial(name, objective, noise_std, loss="nll"):
    return Trial(name, objective, noise_std, loss, row(name, 1, objective, noise_std=noise_std, loss=loss))


def names(trials):
    return [t.name for t in trials]


def test_the_top_k_go_on_with_the_best_of_each_loss_and_two_noise_levels():
    trials = [trial("a", 0.1, 0.1), trial("b", 0.2, 0.11), trial("c", 0.3, 0.12, "mse"), trial("d", 0.4, 0.3)]
    assert names(select_finalists(trials, 1)) == ["a", "c", "d"]
    assert names(select_finalists(trials, 2)) == ["a", "b", "c", "d"]
    assert names(select_finalists([trial("a", 0.1, 0.1), trial("b", 0.2, 0.2)], 1)) == ["a", "b"]
    assert names(select_finalists([trial("a", 0.1, 0.1), trial("b", 0.2, 0.14)], 1)) == ["a"]  # hardly another level
    assert names(select_finalists([trial("a", 0.1, 0.0), trial("b", 0.2, 0.0), trial("c", 0.3, 0.01)], 1)) == ["a", "c"]
    assert names(select_finalists([trial("a", 0.1, 0.1, None), trial("b", 0.2, 0.3, None)], 1)) == ["a", "b"]
    mixed = [trial("a", 0.1, 0.1), trial("b", 0.2, 0.3), trial("c", 0.3, 0.1, "mse")]
    assert names(select_finalists(mixed, 1)) == ["a", "b", "c"]  # best first, whatever each goes on for
    near = [trial("a", 0.1, 0.12), trial("b", 0.2, 0.1), trial("c", 0.3, 0.16)]
    assert names(select_finalists(near, 2)) == ["a", "b", "c"]  # c differs from b, if not from a
    assert names(select_finalists([*near, trial("d", 0.4, 0.3)], 2)) == [
        "a",
        "b",
        "d",
    ]  # b may fall out yet; d differs from a
    assert select_finalists([], 2) == []


def differ(a, b):
    return max(a.noise_std, b.noise_std) > 0 and max(a.noise_std, b.noise_std) >= 1.5 * min(a.noise_std, b.noise_std)


@settings(max_examples=300, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(
            st.integers(0, 9), st.sampled_from([0.0, 0.05, 0.08, 0.1, 0.12, 0.16, 0.4]), st.sampled_from(["nll", "mse"])
        ),
        min_size=1,
        max_size=9,
    ),
    top_k=st.integers(1, 4),
)
def test_hand_on(drawn, top_k):
    trials = [trial(f"t{i}", *values) for i, values in enumerate(sorted(drawn, key=lambda values: values[0]))]
    chosen = select_finalists(trials, top_k)
    assert set(names(chosen)) <= set(names(trials)) and len(set(names(chosen))) == len(chosen)
    assert set(names(trials[:top_k])) <= set(names(chosen))
    for loss in ("nll", "mse"):
        of_loss = [t for t in trials if t.loss == loss]
        if of_loss:
            assert min(t.objective for t in chosen if t.loss == loss) == of_loss[0].objective
    assert [t.objective for t in chosen] == sorted(t.objective for t in chosen)
    if any(differ(a, b) for a in chosen for b in trials):
        assert any(differ(a, b) for a in chosen for b in chosen)
    assert len(chosen) <= top_k + 2  # one for the other loss, one for the other level


def test_a_table_that_is_replaced_while_it_is_read_is_one_of_the_two(tmp_path):
    """A search writes it anew at every rung, and others look at it."""
    path, over = tmp_path / "trials.parquet", threading.Event()
    tables = [[{"trial": "a" * n, "step": n}] * n for n in (1, 200)]
    write_rows(path, tables[0])

    def replace():
        while not over.is_set():
            for rows in tables:
                write_rows(path, rows)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            assert read_rows(path) in tables
    finally:
        over.set()
        thread.join()
