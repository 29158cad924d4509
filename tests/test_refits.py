"""What is trained again, and which winners of a stage are too close to choose one."""

import json

import numpy as np

from raypipe import config, records
from raypipe.metrics.ensemble import Score
from raypipe.refits import _values, rivals_of
from raypipe.trial import Stage
from raypipe.workspace import Workspace


def score(shift, spread=0.0, windows=40, seed=0):
    """Scores that share their windows' difficulty and differ by `shift`, and by noise of a window."""
    difficulty = np.random.default_rng(1).uniform(0.3, 0.7, (windows, 1))
    noise = spread * np.random.default_rng(seed).standard_normal((windows, 1))
    crps = np.repeat(difficulty + shift + noise, 3, 1)
    ones = np.ones_like(crps)
    return Score(crps, ones, ones, ones, 8)


def rivals(*groups):
    """By number, best first."""
    return rivals_of(dict(enumerate(groups)))


def test_the_error_that_counts_is_of_the_paired_difference():
    assert rivals([score(0.0)], [score(0.01)]) == [0]  # the scores' own errors are twice that
    assert score(0.0).ratio.se > 0.01
    assert sorted(rivals([score(0.0, 0.2, seed=2)], [score(0.001, 0.2, seed=3)])) == [0, 1]


def test_only_those_as_good_as_the_best_are_its_rivals():
    far, near = [score(0.3)], [score(0.0), score(0.02)]
    assert rivals(far, near) == [1]
    assert sorted(rivals(far, near, [score(0.01)])) == [1, 2]  # alike in the mean over seeds
    assert sorted(rivals(near, near)) == [0, 1]
    assert rivals(near) == [0]
    assert rivals(near, [score(np.nan)]) == [0]
    assert rivals() == []


def test_a_trial_that_changed_its_values_is_trained_again_with_its_last(tmp_path):
    stage = Stage(config.Experiment(), Workspace(tmp_path, "x"), "flow")
    rates = [("flow", 20, 2e-3), ("flow", 30, 3e-3), ("flow", 10, 1e-3), ("diffusion", 40, 4e-3)]
    rows = [
        {"stage": stage, "trial": "flow-01", "step": step, "values": json.dumps({"train.learning_rate": rate})}
        for stage, step, rate in rates
    ]
    records.write_rows(stage.workspace.trials, rows)
    assert _values(stage, "flow-01") == {"train.learning_rate": 3e-3}
    assert _values(stage, "flow-02") is None
