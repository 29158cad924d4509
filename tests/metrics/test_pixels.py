"""The choice between ways of making frames, by their errors."""

import math

from raypipe.metrics.pixels import FrameErrors, best_of


def window(**errors):
    return {name: FrameErrors((crps, 1.0), (energy, 1.0)) for name, (crps, energy) in errors.items()}


def test_the_lowest_crps_among_those_that_are_not_worse_as_a_whole():
    assert best_of([window(a=(0.5, 0.50), b=(0.4, 0.504), c=(0.3, 0.52))]) == "b"
    assert best_of([window(a=(0.5, 0.50), b=(0.6, 0.40))]) == "b"


def test_the_mean_over_windows_decides():
    assert best_of([window(a=(0.1, 0.5), b=(0.3, 0.5)), window(a=(0.9, 0.5), b=(0.3, 0.5))]) == "b"


def test_an_error_that_is_not_finite_is_never_the_best():
    assert best_of([window(a=(math.nan, 0.5), b=(0.9, 0.9))]) == "b"
    assert best_of([window(a=(math.nan, 0.5), b=(math.inf, 0.9))]) == "a"
