"""ASHA after a restart judges as if it had never stopped."""

import math
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from raypipe import config
from raypipe.search.schedulers.asha import ResumableASHA
from raypipe.search.stage import Stage
from raypipe.workspace.layout import Workspace


def scheduler(known):
    made = ResumableASHA(known, grace_period=100, max_t=301, reduction_factor=3)
    made.set_search_properties("objective", "min")
    return made


def report(made, name, step, objective):
    trial = SimpleNamespace(trial_id=f"tune-{name}", config={"trial": name})
    if name not in made._trial_info:
        made.on_trial_add(None, trial)
    return made.on_trial_result(None, trial, {"train_step": step, "objective": objective})


KNOWN = {f"flow-{i:02d}": {100: 0.5 + i / 100} for i in range(6)}


def test_a_weak_trial_is_stopped_against_all_that_passed_the_rung_before():
    assert report(scheduler({}), "flow-06", 100, 0.6) == TrialScheduler.CONTINUE  # nobody to compare with
    assert report(scheduler(KNOWN), "flow-06", 100, 0.6) == TrialScheduler.STOP
    assert report(scheduler(KNOWN), "flow-06", 100, 0.4) == TrialScheduler.CONTINUE


@pytest.mark.parametrize("steps", [600, 599, 100, 30000])
def test_the_weak_are_stopped_at_every_rung_but_the_last(tmp_path, steps):
    experiment = config.replace(config.Experiment(), **{"search.flow.steps": steps, "search.rungs": 3})
    rungs = Stage(experiment, Workspace(tmp_path, "x"), "flow").rungs
    assert len(rungs) == 3 and rungs[-1] == steps
    known = {f"flow-{i:02d}": dict.fromkeys(rungs[:2], 0.5) for i in range(6)}
    for rung in rungs[:2]:
        made = ResumableASHA(known, grace_period=rungs[0], max_t=rungs[-1] + 1, reduction_factor=3)
        made.set_search_properties("objective", "min")
        for earlier in rungs[: rungs.index(rung)]:
            assert report(made, "flow-06", earlier, 0.4) == TrialScheduler.CONTINUE
        assert report(made, "flow-06", rung, 0.6) == TrialScheduler.STOP


def test_a_rung_on_record_is_not_judged_again():
    assert report(scheduler(KNOWN), "flow-05", 100, 0.9) == TrialScheduler.CONTINUE
    assert report(scheduler(KNOWN), "flow-05", 300, 0.9) == TrialScheduler.CONTINUE  # the first at the next one


def test_a_failed_trial_moves_no_cut():
    made = scheduler(KNOWN)
    trial = SimpleNamespace(trial_id="x", config={"trial": "flow-06"})
    made.on_trial_add(None, trial)
    made.on_trial_complete(None, trial, {"train_step": 300, "objective": math.inf})
    for _, recorded in made._brackets[0]._rungs:
        assert "flow-06" not in recorded
