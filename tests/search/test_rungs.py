"""The rungs of a stage."""

import pytest

from raypipe import config
from raypipe.search.rungs import stage_rungs

SHARE = "search.joint.axes"


def rungs(component="joint", **values):
    base = {"search.joint.steps": 900, "search.flow.steps": 900, "search.diffusion.steps": 900, "search.rungs": 3}
    return stage_rungs(config.replace(config.Experiment(), **base, **values), component)


@pytest.mark.parametrize("component", ["flow", "diffusion"])
def test_losses_of_the_velocity_are_compared_at_every_rung(component):
    assert rungs(component) == [100, 300, 900]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(1.0, [100, 300, 900]), (0.95, [100, 300, 900]), (0.9, [300, 900]), (0.5, [900]), (0.1, [900]), (0.0, [900])],
)
def test_forecasts_are_compared_once_the_score_has_been_trained_on_as_long_as_the_velocity(share, expected):
    assert rungs(**{SHARE: {}, "train.score_share": share}) == expected
    assert rungs(**{SHARE: {"train.score_share": {"choices": [1.0, share]}}}) == expected


def test_the_lowest_share_of_an_axis_counts():
    assert rungs(**{SHARE: {"train.score_share": {"low": 0.9, "high": 0.99}}}) == [300, 900]


def test_a_diffusion_that_may_be_trained_on_the_score_counts_too():
    axes = {"train.loss": {"choices": ["nll", "crps"]}}
    assert rungs("diffusion", **{"search.diffusion.axes": axes, "train.score_share": 0.9}) == [300, 900]
