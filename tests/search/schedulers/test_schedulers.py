"""Who goes on: each scheduler's decisions, by hand and without Ray; then halving and pbt on a real one."""

import json
import math
import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from raypipe import config
from raypipe.config import Axis, ConfigError
from raypipe.search.schedulers import make_scheduler, spaced
from raypipe.search.schedulers.pbt import explore
from raypipe.search.stage import Stage
from raypipe.workspace.layout import Workspace

RUNGS = [100, 200, 300]
CONTINUE, PAUSE, STOP = TrialScheduler.CONTINUE, TrialScheduler.PAUSE, TrialScheduler.STOP


def search(scheduler, **values):
    return config.from_dict({"search": {"scheduler": scheduler, **values}}).search


def make(settings, known=None, trials=0, places=2, **more):
    made = make_scheduler(settings, RUNGS, known or {}, trials, places, **more)
    if made is not None:
        assert made.set_search_properties("objective", "min")
    return made


class Simulation:
    """Trials of a search without Ray, as many at a time as there are places.

    score: the objective of a trial's name and step; None: its process fails there, inf: its training does. log: what
    began, in order.
    """

    def __init__(self, scheduler, names, score, places=2, values=None):
        self.scheduler, self.score, self.places = scheduler, score, places
        self.trials = [
            SimpleNamespace(trial_id=f"tune-{name}", status="PENDING", config={"trial": name, "values": dict(point)})
            for name, point in (values or {name: {} for name in names}).items()
        ]
        self.steps = dict.fromkeys(names, 0)
        self.log = []
        for trial in self.trials:
            scheduler.on_trial_add(self, trial)

    def get_trials(self):
        return self.trials

    def by_name(self, name):
        return next(trial for trial in self.trials if trial.config["trial"] == name)

    def running(self):
        return [trial for trial in self.trials if trial.status == "RUNNING"]

    def fill(self):
        while (trial := self.scheduler.choose_trial_to_run(self)) is not None:
            assert trial.status in ("PAUSED", "PENDING")
            trial.status = "RUNNING"
            self.log.append((trial.config["trial"], self.steps[trial.config["trial"]]))
        assert len(self.running()) <= self.places

    def advance(self):
        """One running trial, the one that began first, comes to its next rung."""
        trial = self.running()[0]
        name = trial.config["trial"]
        step = next(rung for rung in RUNGS if rung > self.steps[name])
        objective = self.score(name, step)
        if objective is None:
            self.scheduler.on_trial_error(self, trial)
            trial.status = "ERROR"
            return
        self.steps[name] = step
        result = {"train_step": step, "objective": objective}
        if step == RUNGS[-1] or math.isinf(objective):  # it ends by itself
            self.scheduler.on_trial_complete(self, trial, result)
            trial.status = "TERMINATED"
        elif self.scheduler.on_trial_result(self, trial, result) == PAUSE:
            trial.status = "PAUSED"

    def finish(self):
        self.fill()
        while self.running():
            self.advance()
            self.fill()
        return self.steps


def names(count, first=0):
    return [f"flow-{i:02d}" for i in range(first, first + count)]


# ---- which there are


def test_the_default_is_asha_and_none_stops_nobody():
    assert config.Experiment().search.scheduler == "asha"
    assert make(search("none")) is None
    known = {f"flow-{i:02d}": {100: 0.1} for i in range(6)}
    made = make(search("asha"), known)
    trial = SimpleNamespace(trial_id="x", status="RUNNING", config={"trial": "flow-06", "values": {}})
    made.on_trial_add(None, trial)
    assert made.on_trial_result(None, trial, {"train_step": 100, "objective": 0.2}) == STOP


@pytest.mark.parametrize("scheduler", ["halving", "pbt"])
def test_trials_of_several_workers_cannot_pause(scheduler):
    with pytest.raises(ConfigError) as caught:
        config.from_dict({"search": {"scheduler": scheduler, "workers_per_trial": 2}})
    assert str(caught.value) == f"config: search.workers_per_trial: must be 1 with search.scheduler {scheduler}, not 2"
    for other in ("asha", "median", "none"):
        assert search(other, workers_per_trial=2).workers_per_trial == 2


def test_an_unknown_one_is_refused():
    with pytest.raises(ConfigError, match=r"^config: search.scheduler: input should be 'asha', 'halving', .*not 'x'$"):
        search("x")


def test_pbt_compares_at_even_distances_the_others_at_powers(tmp_path):
    assert spaced(search("pbt", rungs=4), 600) == [150, 300, 450, 600]
    assert spaced(search("pbt", rungs=3), 100) == [33, 66, 100]
    assert spaced(search("pbt", rungs=5), 2) == [1, 2]
    for other in ("asha", "halving", "median", "none"):
        assert spaced(search(other, rungs=3, reduction_factor=3), 600) == [66, 200, 600]
    experiment = config.replace(config.Experiment(), **{"search.scheduler": "pbt", "search.flow.steps": 90})
    assert Stage(experiment, Workspace(tmp_path, "x"), "flow").rungs == [45, 90]


# ---- median


def report(made, name, step, objective):
    trial = SimpleNamespace(trial_id=f"tune-{name}", status="RUNNING", config={"trial": name, "values": {}})
    made.on_trial_add(None, trial)
    result = {"train_step": step, "objective": objective}
    decision = made.on_trial_result(None, trial, result)
    if decision == STOP:
        made.on_trial_complete(None, trial, result)
    return decision


KNOWN = {"flow-00": {100: 0.4, 200: 0.2}, "flow-01": {100: 0.6, 200: 0.4}, "flow-02": {100: 0.8, 200: 0.6}}


def test_median_stops_what_is_worse_than_the_median_of_running_means():
    made = make(search("median"), KNOWN)
    assert report(made, "flow-03", 100, 0.9) == STOP  # the median of 0.4, 0.6, 0.8 is 0.6
    assert report(made, "flow-04", 100, 0.5) == CONTINUE
    assert report(made, "flow-04", 200, 0.55) == CONTINUE  # its best, 0.5, is the median of the means 0.3, 0.5, 0.7
    assert report(made, "flow-05", 100, 0.55) == CONTINUE  # 0.4, 0.5, 0.6, 0.8, 0.9
    assert report(made, "flow-05", 200, 0.52) == STOP  # 0.3, 0.5, 0.525, 0.7: the median is 0.5125


def test_median_lets_all_go_on_that_have_fewer_than_three_to_be_compared_with():
    made = make(search("median"), {name: KNOWN[name] for name in ("flow-00", "flow-01")})
    assert report(made, "flow-03", 100, 9.0) == CONTINUE
    assert report(made, "flow-04", 100, 9.1) == STOP  # than 0.4, 0.6, 9
    made = make(search("median"), KNOWN)
    assert report(made, "flow-03", 300, 9.0) == CONTINUE  # nobody has come so far


def test_median_does_not_judge_a_rung_on_record_again_nor_count_it_twice():
    made = make(search("median"), KNOWN)
    assert report(made, "flow-02", 200, 0.9) == CONTINUE
    assert report(made, "flow-03", 100, 0.59) == CONTINUE
    assert report(made, "flow-03", 200, 0.51) == STOP  # the means are still 0.3, 0.5, 0.7


def test_median_does_not_count_trials_that_failed():
    made = make(search("median"), KNOWN)
    trial = SimpleNamespace(trial_id="x", status="RUNNING", config={"trial": "flow-09", "values": {}})
    made.on_trial_add(None, trial)
    made.on_trial_complete(None, trial, {"train_step": 300, "objective": math.inf})
    assert report(made, "flow-03", 100, 0.61) == STOP


# ---- halving


def halved(score, count=6, places=2, known=None, first=0, **values):
    made = make(search("halving", **values), known, count, places)
    simulation = Simulation(made, names(count, first), score, places)
    simulation.finish()
    return simulation


@pytest.mark.parametrize("places", [1, 2, 5])
def test_halving_keeps_the_best_third_of_all_at_every_rung(places):
    scores = dict(zip(names(9), [0.5, 0.3, 0.9, 0.1, 0.8, 0.2, 0.7, 0.6, 0.4], strict=True))
    run = halved(lambda name, step: scores[name] - (step > 100) * (name == "flow-01") / 4, 9, places)
    ends = {name: step for name, step in run.steps.items() if step > 100}
    assert ends == {"flow-03": 200, "flow-05": 200, "flow-01": 300}  # 0.1, 0.2, 0.3; then 0.05 is the best of three
    assert {trial.status for trial in run.trials} == {"TERMINATED"}
    began = [step for _, step in run.log]
    assert began == sorted(began)  # none goes on before all have come


def test_halving_keeps_the_first_of_equals_and_one_at_least():
    run = halved(lambda name, step: 0.5, 6)
    assert [name for name, step in run.steps.items() if step > 100] == ["flow-00", "flow-01"]
    assert [name for name, step in run.steps.items() if step > 200] == ["flow-00"]
    assert halved(lambda name, step: 0.5, 2).steps == {"flow-00": 300, "flow-01": 100}


def test_halving_does_not_wait_for_trials_that_fail():
    def score(name, step):
        failing = {"flow-00": None, "flow-04": math.inf, "flow-05": None}
        return failing.get(name, int(name[-2:]) / 10)

    run = halved(score, 6)
    assert run.steps == {"flow-00": 0, "flow-01": 300, "flow-02": 100, "flow-03": 100, "flow-04": 100, "flow-05": 0}
    assert [trial.status for trial in run.trials] == ["ERROR", *["TERMINATED"] * 4, "ERROR"]
    run = halved(lambda name, step: None if step == 200 and name == "flow-00" else int(name[-2:]), 6)
    assert run.steps == {"flow-00": 100, "flow-01": 300} | dict.fromkeys(names(4, 2), 100)  # later, too


def test_a_process_that_failed_starts_again_and_is_waited_for():
    made = make(search("halving"), {}, 3, 3)
    run = Simulation(made, names(3), lambda name, step: int(name[-2:]) / 10, 3)
    run.fill()
    for _ in range(2):
        run.advance()
    run.fill()
    (last,) = run.running()
    made.on_trial_error(run, last)
    last.status = "PENDING"
    made.on_trial_add(run, last)
    assert last.status == "PENDING"  # Tune starts it by itself
    assert made.choose_trial_to_run(run) is None
    last.status = "RUNNING"
    assert run.finish() == {"flow-00": 300, "flow-01": 100, "flow-02": 100}


def test_halving_after_a_restart_decides_as_if_it_had_never_stopped():
    """Killed while the weak were being stopped: two of four were, and one of the best two has gone on since."""
    scores = dict(zip(names(6), [0.5, 0.1, 0.6, 0.2, 0.4, 0.3], strict=True))
    known = {name: {100: score} for name, score in scores.items()}
    known["flow-01"][200] = 0.05
    made = make(search("halving"), known, 4, 2)
    left = ["flow-01", "flow-03", "flow-04", "flow-05"]
    run = Simulation(made, left, lambda name, step: scores[name] if step < 200 else 0.05, 2)
    run.steps["flow-01"] = 100  # went on from here; the others tell the rung again
    assert run.finish() == {"flow-01": 300, "flow-03": 200, "flow-04": 100, "flow-05": 100}
    assert all(trial.status == "TERMINATED" for trial in run.trials)


def test_scores_on_record_count_for_trials_that_are_added_to_a_search():
    known = {name: {100: 0.1 + i / 100} for i, name in enumerate(names(6))}
    run = halved(lambda name, step: 0.105 if name == "flow-06" else 0.5, 3, known=known, first=6)
    assert run.steps == {"flow-06": 300, "flow-07": 100, "flow-08": 100}


def test_a_rung_counts_as_told_only_once_it_was_judged():
    """What a trial that is taken up again goes by."""
    made = make(search("halving"), {"flow-00": {100: 0.1}, "flow-01": {100: 0.2}}, 2, 1)
    run = Simulation(made, names(2), lambda name, step: 0.1, 1)
    first = run.by_name("flow-00")
    assert first.config["reported"] == []
    run.fill()
    run.advance()
    assert first.config["reported"] == []
    run.fill()
    run.advance()
    run.fill()
    assert first.config["reported"] == [100]


# ---- pbt


AXES = {
    "train.noise_std": Axis(low=0.01, high=0.4, log=True, zero=True),
    "train.learning_rate": Axis(low=1e-3, high=5e-3, log=True),
    "train.batch_size": Axis(low=4, high=16),
    "train.loss": Axis(choices=["nll", "mse"]),
    "model.time_input": Axis(choices=[False, True]),
}
POINT = {
    "train.noise_std": 0.1,
    "train.learning_rate": 2e-3,
    "train.batch_size": 10,
    "train.loss": "nll",
    "model.time_input": True,
}


def population(score, count=10, known=None, axes=AXES):
    """The simulation, and who copied whom."""
    exploits = []
    made = make(search("pbt", seed=3), known, count, 2, axes=axes, copy=exploits.append)
    values = {name: POINT | {"train.learning_rate": 1e-3 + i * 1e-4} for i, name in enumerate(names(count))}
    simulation = Simulation(made, names(count), score, 2, values)
    return simulation, exploits


def test_pbt_the_worst_fifth_copies_the_best_fifth():
    run, exploits = population(lambda name, step: (int(name[-2:]) - 5) ** 2 + int(name[-2:]) / 10)
    assert set(run.finish().values()) == {300}  # nobody is stopped
    first = {e.trial: e.donor for e in exploits if e.step == 100}
    assert first.keys() == {"flow-09"}  # and the default, as bad, which keeps its own
    assert set(first.values()) <= {"flow-05", "flow-04"}
    assert [e.step for e in exploits] == sorted(e.step for e in exploits)
    for exploit in exploits:
        assert exploit.values["model.time_input"] is True
        assert exploit.values != POINT


def test_pbt_the_copier_has_the_values_that_it_is_given_from_then_on():
    run, exploits = population(lambda name, step: int(name[-2:]), 4)
    run.finish()
    assert [(e.trial, e.donor, e.step) for e in exploits] == [
        ("flow-03", "flow-00", 100),
        ("flow-03", "flow-00", 200),
    ]
    assert run.by_name("flow-03").config["values"] == exploits[-1].values
    assert run.by_name("flow-00").config["values"] == POINT | {"train.learning_rate": 1e-3}


def test_pbt_decides_the_same_after_a_restart():
    """Killed when one of two copies was made: that trial goes on, the rest tell the rung again."""

    def score(name, step):
        return int(name[-2:])

    whole, exploits = population(score)
    whole.finish()
    done, due = [e for e in exploits if e.step == 100]
    known = {name: {100: score(name, 100)} for name in names(10)}
    again, repeated = population(score, known=known)
    again.steps[done.trial] = 100
    again.finish()
    assert [e for e in repeated if e.step == 100] == [due]


def test_pbt_learns_of_the_values_that_a_trial_changed_before_the_restart():
    run, exploits = population(lambda name, step: int(name[-2:]), 2, axes={})
    changed = POINT | {"train.batch_size": 4, "train.loss": "mse"}
    for name in names(2):
        trial = run.by_name(name)
        trial.status = "PAUSED"
        result = {"train_step": 100, "objective": int(name[-2:]), "values": json.dumps(changed)}
        run.scheduler.on_trial_result(run, trial, result)
        run.steps[name] = 100
    run.fill()
    assert [(e.trial, e.donor, e.values) for e in exploits] == [("flow-01", "flow-00", changed)]


def test_explored_values_stay_inside_their_axes_and_move():
    draw = random.Random(0)
    point, seen = dict(POINT), []
    for _ in range(2000):
        point = explore(point, AXES, draw)
        seen.append(point)
    for name in ("train.noise_std", "train.learning_rate", "train.batch_size"):
        axis, values = AXES[name], {p[name] for p in seen}
        assert max(values) == axis.high  # clipped
        assert min(values - {0}) == pytest.approx(axis.low, rel=0.05)
        assert min(values - {0}) >= axis.low
        assert (0 in values) == axis.zero
    assert {type(p["train.batch_size"]) for p in seen} == {int}
    assert {p["train.loss"] for p in seen} == {"nll", "mse"}
    assert {p["model.time_input"] for p in seen} == {True}


def test_a_value_moves_by_a_fifth_or_is_drawn_anew():
    moved = [explore(POINT, AXES, random.Random(i))["train.learning_rate"] for i in range(400)]
    near = sum(value in (0.8 * 2e-3, 1.2 * 2e-3) for value in moved)
    assert near == pytest.approx(300, abs=35)  # 3/4, within four standard deviations
    assert {0.8 * 2e-3, 1.2 * 2e-3} <= set(moved)


def test_values_that_weights_depend_on_and_unknown_ones_are_left_alone():
    axes = {
        "train.flow": Axis(choices=["a", "b"]),
        "train.steps": Axis(low=1, high=9),
        "train.ema": Axis(low=0, high=1),
    }
    values = {"train.flow": "a", "train.steps": 5}
    assert all(explore(values, axes, random.Random(i)) == values for i in range(50))


def test_zero_goes_to_the_end_of_its_range_or_stays():
    axes = {"train.noise_std": AXES["train.noise_std"]}
    moved = {explore({"train.noise_std": 0.0}, axes, random.Random(i))["train.noise_std"] for i in range(60)}
    assert {0.0, 0.01} <= moved
    low = {explore({"train.noise_std": 0.011}, axes, random.Random(i))["train.noise_std"] for i in range(60)}
    assert {0.0, 0.011 * 1.2} <= low  # below the range is 0
