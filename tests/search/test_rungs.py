"""The rungs of a stage."""

import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from raypipe import config
from raypipe.search.rungs import mean_trial, stage_rungs
from raypipe.search.schedulers import make_scheduler, passing

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


@pytest.mark.parametrize(
    ("scheduler", "low", "high"), [("none", 1, 1), ("pbt", 1, 1), ("halving", 1 / 3, 1 / 3), ("asha", 1 / 3, 0.6)]
)
def test_the_mean_trial_of_each_scheduler(scheduler, low, high):
    settings = {"search.scheduler": scheduler, "search.rungs": 2, "search.flow.steps": 900}
    steps, scores = mean_trial(config.replace(config.Experiment(), **settings), "flow", 12)
    first = 450 if scheduler == "pbt" else 300
    assert low <= (steps - first) / (900 - first) <= high
    assert scores == pytest.approx(1 + (steps - first) / (900 - first))


def test_asha_stops_as_many_as_expected():
    """The real scheduler, with scores at random, for 300 searches of six trials."""
    settings = config.replace(config.Experiment(), **{"search.rungs": 2, "search.flow.steps": 900}).search
    rng = random.Random(0)
    passed = 0
    for _ in range(300):
        rule = make_scheduler(settings, [300, 900], {}, 6, 2)
        assert rule is not None and rule.set_search_properties("objective", "min")
        for number in range(6):
            trial = SimpleNamespace(trial_id=str(number), config={"trial": f"flow-{number:02d}"})
            rule.on_trial_add(None, trial)
            result = {"train_step": 300, "objective": rng.random()}
            passed += rule.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    assert passed / 1800 == pytest.approx(passing(settings, 6), abs=0.03)
