"""When the best of a stage are too close to choose one."""

import numpy as np

from raypipe.metrics.ensemble import Score
from raypipe.refits import too_close


def score(shift, spread=0.0, windows=40, seed=0):
    """Scores that share their windows' difficulty and differ by `shift`, and by noise of a window."""
    difficulty = np.random.default_rng(1).uniform(0.3, 0.7, (windows, 1))
    noise = spread * np.random.default_rng(seed).standard_normal((windows, 1))
    crps = np.repeat(difficulty + shift + noise, 3, 1)
    ones = np.ones_like(crps)
    return Score(crps, ones, ones, ones, 8)


def test_the_error_that_counts_is_of_the_paired_difference():
    assert not too_close([[score(0.0)], [score(0.01)]])  # the scores' own errors are twice that
    assert score(0.0).ratio.se > 0.01
    assert too_close([[score(0.0, 0.2, seed=2)], [score(0.001, 0.2, seed=3)]])


def test_only_the_second_best_can_be_too_close():
    far, near = [score(0.3)], [score(0.0), score(0.02)]
    assert not too_close([far, near])
    assert too_close([far, near, [score(0.01)]])  # alike in the mean over seeds
    assert too_close([near, near])
    assert not too_close([near])
    assert not too_close([near, [score(np.nan)]])
    assert not too_close([])
