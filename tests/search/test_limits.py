"""When a stage ends before all its trials: the decisions, and what the commands and the record make of them."""

import math
import random
from functools import partial

import optuna
import pytest
from ray.tune.search import Searcher

from raypipe import tune
from raypipe.search.budget import Budget, StageWork, Work
from raypipe.search.early import EARLY, EarlyEnd, left_out, read_early
from raypipe.search.early_stop import LimitedSearcher, StopEarly
from raypipe.search.limits import StageLimit, plateaued
from raypipe.search.progress import is_searched
from raypipe.search.study import ended_trials, open_storage, set_closed
from raypipe.search.tuner import make_limit, make_searcher
from tests.raytools import listing, outcome, tiny
from tests.search import simulated
from tests.search.simulated import begin, resume
from tests.search.test_budget import Clock

optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.parametrize(
    ("scores", "startup", "patience", "ends"),
    [
        ([], 0, 1, False),
        ([0.5, 0.6, 0.7], 0, None, False),
        ([0.5, 0.6, 0.7], 0, 2, True),
        ([0.5, 0.6, 0.7], 0, 3, False),
        ([0.5, 0.6, 0.4], 0, 2, False),
        ([0.5, 0.6, 0.5], 0, 2, True),  # as good is no gain
        ([0.5, 0.6, 0.7], 2, 2, False),  # the first two do not count
        ([0.5, 0.6, 0.7, 0.8], 2, 2, True),
        ([0.5, 0.6, 0.4, 0.8, 0.9], 2, 2, True),
        ([0.5, 0.6, 0.4, 0.8, 0.3], 2, 2, False),
    ],
)
def test_patience_counts_ended_trials_since_the_last_gain(scores, startup, patience, ends):
    assert plateaued(scores, startup, patience) == ends


RUNGS = [10, 30]
STEP, SCORE = 1.0, 2.0
"""A trial takes 12 seconds to its first rung and 22 from there to its end."""


def limit(minutes=2.0, *, patience=None, pauses=False):
    """Of a stage whose trials are all that the search consists of."""
    clock = Clock()
    budget = Budget(minutes, 0.0, clock)
    budget.plan({"flow": StageWork(Work(1000, 100), Work())}, Work())
    budget.begin_trials()
    made = StageLimit(budget, "flow", RUNGS, startup=0, patience=patience, pauses=pauses, default="flow-00")
    return clock, made


def report(made, trial, rung):
    steps = RUNGS[rung] - (RUNGS[rung - 1] if rung else 0)
    made.report(trial, steps=steps, training=steps * STEP, scoring=SCORE)


def run(clock, made, trial, objective=0.5):
    """Run a trial alone, to its end."""
    made.begin(trial, trial, [])
    for rung, step in enumerate(RUNGS):
        clock.now += (step - (RUNGS[rung - 1] if rung else 0)) * STEP + SCORE
        report(made, trial, rung)
    made.end(trial, objective)


def test_no_bound_and_no_patience_end_nothing():
    clock, made = limit(None)
    for number in range(20):
        assert made.start() == "now"
        run(clock, made, f"flow-{number:02d}")
        assert not made.stop()
    assert made.reason is None


def test_no_trial_starts_that_would_not_reach_a_rung_in_the_share():
    clock, made = limit(2.0)  # 120 seconds, and the last twelve are not planned with
    run(clock, made, "flow-00")
    clock.now = 95.9
    assert made.start() == "now" and not made.stop()
    made.begin("flow-01", "flow-01", [])
    clock.now = 96.1
    assert made.start() == "later"  # the running one may still reach its rung
    assert not made.stop()
    clock.now = 108
    report(made, "flow-01", 0)
    assert made.stop() and made.reason == "minutes"  # it would not reach the next
    assert made.start() == "never"


def test_what_takes_longer_than_expected_stops_at_the_end_of_the_share():
    clock, made = limit(2.0)
    run(clock, made, "flow-00")
    made.begin("flow-01", "flow-01", [])
    clock.now = 119
    assert not made.stop()
    clock.now = 120
    assert made.stop()


def test_without_time_one_trial_still_ends_with_a_score():
    clock, made = limit(0.001)
    clock.now = 5
    assert made.start() == "now"
    made.begin("flow-00", "flow-00", [])
    assert made.start() == "later" and not made.stop()
    clock.now = 17
    report(made, "flow-00", 0)
    assert not made.stop()
    clock.now = 39
    made.end("flow-00", None)  # it diverged
    assert made.start() == "now" and not made.stop()
    run(clock, made, "flow-01")
    assert made.stop() and made.start() == "never"
    assert made.enough_since == clock.now


def test_where_trials_wait_for_each_other_the_first_score_of_the_default_is_enough():
    clock, made = limit(0.001, pauses=True)
    for name in ("flow-00", "flow-01"):
        assert made.start() == "now"
        made.begin(name, name, [])
    clock.now = 12
    report(made, "flow-01", 0)
    assert not made.stop()
    report(made, "flow-00", 0)
    assert made.stop() and made.reason == "minutes"


def test_patience_stops_at_once_and_failures_do_not_count():
    clock, made = limit(None, patience=2)
    run(clock, made, "flow-00", 0.5)
    run(clock, made, "flow-01", None)
    run(clock, made, "flow-02", math.inf)
    run(clock, made, "flow-03", 0.6)
    assert not made.stop()
    run(clock, made, "flow-04", 0.55)
    assert made.stop() and made.reason == "patience" and made.start() == "never"


def test_only_the_last_trials_of_earlier_calls_count():
    """An earlier call may have had more patience, or none."""

    def after(*scores):
        ended = [(f"flow-{number:02d}", score) for number, score in enumerate(scores)]
        return StageLimit(
            Budget(None), "flow", RUNGS, startup=0, patience=2, pauses=False, default="flow-00", ended=ended
        ).start()

    assert after(0.5, 0.6, 0.7, 0.4) == "now"
    assert after(0.5, 0.6, 0.4, 0.7, 0.8) == "never"


def test_the_searcher_and_the_stopper_of_tune_follow(tmp_path):
    stage = begin(tmp_path, **{"search.flow.trials": 3, "search.patience": 1})
    storage = open_storage(stage.workspace.study)
    clock = Clock()
    made = make_limit(stage, storage, Budget(None, 0.0, clock))
    searcher, stopper = LimitedSearcher(make_searcher(stage, storage), made), StopEarly(made)
    made.start = lambda: "later"
    assert searcher.suggest("a") is None
    del made.start
    assert searcher.suggest("a")["trial"] == "flow-00"
    result = {"objective": 0.5, "train_step": 18, "trained": 18, "training": 9.0, "scoring": 1.0}
    searcher.on_trial_complete("a", result)
    assert made._budget.pace("flow").step == 0.5
    for name in "bcdef":  # the first trials do not count
        searcher.suggest(name)
        assert not stopper.stop_all()
        searcher.on_trial_complete(name, result)
        if stopper.stop_all():
            break
    assert name == "d"  # of three trials all are first ones, so the fourth is the first that counts
    assert searcher.suggest("x") == Searcher.FINISHED


# ---- the record


def finish(stage, **early):
    """What a stage that ended early leaves."""
    workspace = stage.workspace
    workspace.finalists("flow").parent.mkdir(exist_ok=True)
    workspace.finalists("flow").write_text("[]")
    set_closed(workspace.study, "flow", True)
    study = optuna.load_study(study_name="flow", storage=open_storage(workspace.study))
    study.set_user_attr(EARLY, early)


@pytest.fixture
def part(tmp_path):
    """A flow stage of eight trials, of which some have ended."""
    stage = begin(tmp_path, **{"search.flow.trials": 8, "search.patience": 3})
    simulated.search(stage, random.Random(1), events=16)
    assert 0 < ended_trials(stage.workspace.study, "flow") < 8
    return stage


def searched(stage, **values):
    search = tiny(**{"search.flow.trials": 8, "search.patience": 3} | values).search
    return is_searched(stage.workspace, "flow", search)


def test_a_stage_that_patience_ended_is_finished_until_patience_is_raised_or_removed(part):
    finish(part, reason="patience", limit=3)
    assert searched(part) and searched(part, **{"search.patience": 2})
    assert searched(part, **{"search.flow.trials": 20})  # more trials alone are not patience
    assert not searched(part, **{"search.patience": 4})
    assert not searched(part, **{"search.patience": None})
    storage = open_storage(part.workspace.study)
    assert make_limit(part, storage, Budget(None)).start() == "never"
    raised = resume(part.workspace.storage, "--search.patience", 100)
    assert make_limit(raised, storage, Budget(None)).start() == "now"


def test_a_stage_that_ran_out_of_time_is_unfinished(part):
    finish(part, reason="minutes", limit=2.5)
    assert not searched(part)
    assert searched(part, **{"search.flow.trials": 1})
    assert read_early(part.workspace.study, "flow") == EarlyEnd("minutes", 2.5)


def test_one_line_says_what_was_left_out(part):
    ended = ended_trials(part.workspace.study, "flow")
    assert left_out(part.workspace, "flow", part.experiment.search) is None
    finish(part, reason="minutes", limit=2.5)
    assert left_out(part.workspace, "flow", part.experiment.search) == (
        f"flow stage: {ended} of 8 trials, its share of search.minutes (2.5) is used up; "
        "extend with --resume --search.minutes N, or null"
    )
    finish(part, reason="patience", limit=3)
    assert left_out(part.workspace, "flow", part.experiment.search) == (
        f"flow stage: {ended} of 8 trials, the best score has not improved in 3 trials (search.patience); "
        "extend with --resume --search.patience N, or null"
    )
    assert left_out(part.workspace, "flow", tiny(**{"search.flow.trials": 1}).search) is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--search.minutes", "-3"], "search.minutes: must be above 0, or null, not -3"),
        (["--search.minutes", "0"], "search.minutes: must be above 0, or null, not 0"),
        (["--search.minutes", "soon"], "search.minutes: "),
        (["--search.minutes", ".inf"], "search.minutes: "),
        (["--search.patience", "0"], "search.patience: must be at least 1, not 0"),
        (["--search.patience", "-1"], "search.patience: must be at least 1, not -1"),
        (["--search.patience", "1.5"], "search.patience: "),
        (["--search.patience", "much"], "search.patience: "),
    ],
)
def test_bad_values_are_one_line(tmp_path, capfd, argv, says):
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", [*argv, "--storage", tmp_path / "storage"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("tune_flow.py: error: ") and says in err
    assert listing(tmp_path) == []
