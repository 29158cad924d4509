"""The choice between ways of making frames, by their errors."""

import math

from raypipe.metrics.pixels import FrameErrors, best_of


def window(**errors):
    return {name: FrameErrors((crps, 1.0), (energy, 1.0)) for name, (crps, energy) in errors.items()}


def test_the_lowest_product_of_both_errors():
    assert best_of([window(a=(0.50, 0.50), b=(0.40, 0.55), c=(0.36, 0.70))]) == "b"
    assert best_of([window(a=(0.50, 0.50), b=(0.60, 0.40))]) == "b"


def test_a_little_worse_frames_as_a_whole_are_taken_for_a_much_lower_error_of_pixels():
    """A walk filmed by a fixed camera, as a search forecast it: what does not move was lost by the autoencoder."""
    assert best_of([window(fading=(1.154, 0.673), copied=(0.851, 0.695), plain=(1.721, 0.772))]) == "copied"


def test_the_mean_over_windows_decides():
    assert best_of([window(a=(0.1, 0.5), b=(0.3, 0.5)), window(a=(0.9, 0.5), b=(0.3, 0.5))]) == "b"


def test_an_error_that_is_not_finite_is_never_the_best():
    assert best_of([window(a=(math.nan, 0.5), b=(0.9, 0.9))]) == "b"
    assert best_of([window(a=(math.nan, 0.5), b=(math.inf, 0.9))]) == "a"
