"""Where a search begins."""

import math

from hypothesis import given
from hypothesis import strategies as st

from raypipe.config import Axis, Experiment
from raypipe.search.first_points import default_point, first_points
from raypipe.search.space import distribution

AXES = Experiment().search.flow.axes


@given(st.integers(0, 1000))
def test_the_first_points_cover_every_pair_of_choices(seed):
    default = default_point(Experiment(), "flow")
    points = first_points(AXES, default, 4, seed)
    assert points[0] == default
    pairs = {(point["train.loss"], point["model.time_input"]) for point in points}
    assert pairs == {("nll", False), ("nll", True), ("mse", False), ("mse", True)}


@given(st.integers(2, 12), st.integers(0, 1000))
def test_each_stratum_of_a_range_has_one_point(count, seed):
    points = first_points(AXES, default_point(Experiment(), "flow"), count, seed)
    assert len(points) == count
    for name in ("train.noise_std", "train.learning_rate"):
        space = distribution(name, AXES[name])
        low, high = math.log(space.low), math.log(space.high)
        strata = [int((math.log(point[name]) - low) / (high - low) * (count - 1) * (1 - 1e-12)) for point in points[1:]]
        assert sorted(strata) == list(range(count - 1))
        assert all(space.low <= point[name] <= space.high for point in points)


def test_whole_numbers_stay_whole():
    axes = {"model.depth": Axis(low=1, high=4), "train.batch_size": Axis(low=4, high=64, log=True)}
    for point in first_points(axes, {"model.depth": 2, "train.batch_size": 16}, 6, 0):
        assert isinstance(point["model.depth"], int) and 1 <= point["model.depth"] <= 4
        assert isinstance(point["train.batch_size"], int) and 4 <= point["train.batch_size"] <= 64


def test_the_seed_decides():
    default = default_point(Experiment(), "flow")
    assert first_points(AXES, default, 5, 1) == first_points(AXES, default, 5, 1)
    assert first_points(AXES, default, 5, 1) != first_points(AXES, default, 5, 2)
