"""Frames at another rate: at every time, the frame that is shown then."""

import pytest

from raypipe.data.video.timing import resample


def at(rate, count, digits=9):
    """Frames whose content is their time, rounded as a container does."""
    return ((round(i / rate, digits), i / rate) for i in range(count))


@pytest.mark.parametrize("digits", [3, 9])
@pytest.mark.parametrize(
    ("rate", "count", "fps", "expected"),
    [(60, 60, 30, 30), (30, 30, 60, 60), (25, 50, 30, 60), (29.97, 300, 29.97, 300)],
)
def test_the_length_in_seconds_stays(rate, count, fps, expected, digits):
    shown = list(resample(at(rate, count, digits), fps))
    assert len(shown) == expected
    assert all(-0.25 / fps - 1e-3 <= i / fps - time <= 1 / rate + 1e-3 for i, time in enumerate(shown))


def test_equal_rates_change_nothing():
    assert list(resample(at(24, 50, 3), 24)) == [i / 24 for i in range(50)]


def test_one_frame_and_none():
    assert list(resample(iter([(7.0, "a")]), 10)) == ["a"]
    assert list(resample(iter([]), 10)) == []


def test_times_that_jump_are_refused():
    with pytest.raises(ValueError, match="its times jump by 1000 s"):
        list(resample(iter([(0.0, "a"), (1000.0, "b")]), 10))
