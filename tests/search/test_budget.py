"""How search.minutes is divided, from the expected and the measured durations."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.search.budget import UNMEASURED, Budget, Pace, StageWork, Work, divide
from raypipe.search.workload import PROCESS, START_UP, evaluation_work, stage_work
from tests.raytools import tiny

SECONDS = st.floats(0.1, 1e4)


class Clock:
    """A clock that a test sets, in seconds."""

    now = 0.0

    def __call__(self):
        return self.now


@given(SECONDS, st.lists(SECONDS, min_size=1, max_size=4), SECONDS, st.booleans())
def test_shares_never_exceed_the_time_and_keep_the_rest_where_it_fits(left, trials, rest, measured):
    expected = dict(enumerate(trials))
    shares = divide(left, expected, rest, measured=measured)
    assert shares.keys() == expected.keys() and min(shares.values()) >= 0
    assert sum(shares.values()) <= left * (1 + 1e-9)
    if measured:
        assert sum(shares.values()) == pytest.approx(max(0.0, left - rest), abs=1e-6)


def test_what_is_too_long_is_cut_in_proportion_and_what_fits_is_not():
    assert divide(100, {"flow": 100, "joint": 300}, 60, measured=True) == {"flow": 10, "joint": 30}
    assert divide(100, {"flow": 20, "joint": 10}, 60, measured=True) == {"flow": 30, "joint": 10}
    assert divide(100, {"flow": 20, "joint": 10}, 120, measured=True) == {"flow": 0, "joint": 0}
    assert divide(100, {"flow": 1, "joint": 3}, 4, measured=False) == {"flow": 12.5, "joint": 37.5}  # units unknown


def planned(minutes=2.0, began=0.0):
    clock = Clock()
    budget = Budget(minutes, began, clock)
    work = StageWork(Work(1000, 10), Work(400, 4, 10))
    budget.plan({"flow": work, "denoiser": work}, Work(scores=20))
    return clock, budget


def test_without_a_bound_there_is_no_share_and_no_overrun():
    clock, budget = planned(None)
    clock.now = 1e9
    assert budget.share("flow") is None and budget.overrun() is None


def test_a_share_follows_what_is_measured():
    clock, budget = planned()
    clock.now = 20
    budget.begin_trials()
    weight = 1000 * UNMEASURED.step + 10 * UNMEASURED.score
    rest = 2 * (400 * UNMEASURED.step + 4 * UNMEASURED.score + 10) + 20 * UNMEASURED.score
    assert budget.share("flow") == (20, pytest.approx(20 + 100 * weight / (2 * weight + rest)))
    budget.measure("flow", 100, 4.0, 0.2)
    budget.measure("flow", 100, 2.0, 0.4)
    assert budget.pace("flow") == Pace(pytest.approx(0.03), pytest.approx(0.3))
    assert budget.pace("joint") == Pace(pytest.approx(0.15), pytest.approx(0.3))  # by RELATIVE, until it is measured
    rest = 2 * (400 * 0.03 + 4 * 0.3 + 10) + 20 * 0.3
    clock.now = 50  # a share is of what was left when the stage began
    assert budget.share("flow") == (20, pytest.approx(20 + (100 - rest) / 2))


def test_retraining_that_takes_longer_than_expected_leaves_less_to_the_next_stage():
    clock, budget = planned(10)
    budget.begin_trials()
    budget.measure("flow", 100, 10.0, 0.5)
    clock.now = 100
    budget.end_trials(50)
    expected = 400 * 0.1 + 4 * 0.5 + 10
    clock.now = 100 + 1.5 * expected
    budget.end_stage("flow")
    budget.begin_trials()
    left = 600 - clock.now
    assert budget.share("denoiser")[1] == pytest.approx(clock.now + left - 1.5 * expected - 20 * 0.5)


def test_an_overrun_is_said_with_what_the_search_needs_at_least():
    clock, budget = planned(1)
    budget.begin_trials()
    clock.now = 50
    budget.end_trials(30)  # 20 seconds of trials more than the stage needs
    clock.now = 59
    assert budget.overrun() is None
    clock.now = 80
    said = "search.minutes: took 1.3 minutes, not 1; with one trial in each stage, this search takes at least about 1.0"
    assert budget.overrun() == said


def test_the_work_of_a_stage_is_that_of_its_trials_and_refits():
    """Three trials of 18 steps with rungs at 6 and 18; two losses, the default, and two seeds."""
    experiment = tiny(**{"search.scheduler": "none"})
    trials, refits = Work(2 * 18, 2 * 2, PROCESS), Work(3 * 2 * 24 / 2, 3, START_UP)
    assert stage_work(experiment, "flow", 3, 2) == StageWork(trials, refits)  # the third trial runs alone
    assert stage_work(experiment, "flow", 3, 2, workers=8).refits.steps == 6 * 24  # by one worker, one after another
    halving = tiny(**{"search.scheduler": "halving"})
    assert stage_work(halving, "flow", 6, 2).trials == Work(pytest.approx(3 * (6 + 12 / 3)), pytest.approx(4), PROCESS)
    assert stage_work(halving, "flow", 3, 3).trials == Work(18, 2, PROCESS)  # as long as the one that goes on
    assert stage_work(experiment, "flow", 0, 2).trials == Work(0, 0)
    assert stage_work(experiment, "joint", 2, 1).refits.steps == 0  # no trials in the config, so no finalists


def test_the_evaluation_grows_with_what_it_combines():
    one = evaluation_work(tiny(**{"search.top_k": 1}), 1).scores
    assert evaluation_work(tiny(**{"search.top_k": 1}), 2).scores == one / 2
    assert evaluation_work(tiny(**{"search.top_k": 3}), 1).scores > one
    assert evaluation_work(tiny(**{"search.top_k": 1, "search.joint.trials": 1}), 1).scores > one
