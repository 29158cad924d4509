"""Early stopping: the best weights are kept, the end is decided, and a resumed training goes on as if never stopped."""

import math

import pytest
import torch
from torch import nn

from raypipe import checkpoint, config
from raypipe.config import Experiment
from raypipe.distributed.training_job import finished
from raypipe.distributed.validation import early_stopping
from raypipe.training.component import ComponentTraining
from raypipe.training.early_stopping import EarlyStopping, check_interval, kept_early, validated
from raypipe.workspace.layout import ParentModels


def settings(**train):
    return config.replace(Experiment(), **{f"train.{name}": value for name, value in train.items()})


class Scores:
    """A score that a list prescribes, and a model whose weight is the number of the step."""

    def __init__(self, *scores):
        self.left = list(scores)

    def __call__(self, module):
        return self.left.pop(0)


def checks(stopping, every, last):
    """Check at every `every` steps until the training ends; returns the step at which it ended."""
    model, step = nn.Linear(1, 1), 0
    while step < last and not stopping.found.stopped:
        step = stopping.next_check(step)
        model.weight.data.fill_(step)
        stopping.check(step, model)
    return step


@pytest.mark.parametrize(
    ("scores", "patience", "end", "best"),
    [
        ((0.9, 0.7, 0.8, 0.6, 0.65), 2, 50, 40),  # one failure between two improvements does not count
        ((0.9, 0.7, 0.8, 0.7, 0.1), 2, 40, 20),  # equal is no improvement
        ((0.9, 0.7, 0.8, 0.75, 0.5), None, 50, 50),
        ((0.9, 0.7, 0.8, 0.75, 0.71), None, 50, 20),
        ((math.nan, 0.9, math.inf, 0.95, 0.5), 2, 40, 20),
        ((math.nan, math.nan, 0.9, 0.9, 0.9), 2, 20, 0),
    ],
)
def test_the_best_weights_are_kept_and_patience_ends_the_training(scores, patience, end, best):
    stopping = EarlyStopping(settings(steps=50, patience=patience), 10, Scores(*scores))
    assert checks(stopping, 10, 50) == end
    assert stopping.found.stopped == (end < 50)
    assert stopping.found.step == best
    if best:
        assert stopping.best.weight.item() == best
        assert stopping.found.score == min(s for s in scores[: end // 10] if math.isfinite(s))
    else:
        assert stopping.best is None


def test_patience_begins_when_forecasts_are_trained_on():
    """Before that, a joint network learns the velocity, which the score may be worse for."""
    joint = settings(component="joint", steps=80, score_share=0.5, patience=2)
    stopping = EarlyStopping(joint, 10, Scores(0.5, 0.6, 0.6, 0.6, 0.6, 0.6))
    assert checks(stopping, 10, 80) == 60


def test_the_last_step_is_checked_and_others_are_not():
    scores = Scores(0.5, 0.4, 0.3)
    stopping = EarlyStopping(settings(steps=25), 10, scores)
    found = [stopping.check(step, nn.Linear(1, 1)) for step in (5, 10, 15, 20, 24, 25)]
    assert found == [None, 0.5, None, 0.4, None, 0.3]
    assert [stopping.next_check(step) for step in (0, 9, 10, 20, 24)] == [10, 10, 20, 25, 25]


MANY, FEW = [1000], [68]
"""Frames of the only training clip: 996 and 64 windows of 5 frames."""


def test_only_trainings_on_few_data_are_checked_of_themselves():
    for steps, lengths in ((1867, MANY), (120, FEW)):  # every window seen 30 times in batches of 16
        assert check_interval(settings(steps=steps), lengths) is None
        assert check_interval(settings(steps=steps, validate_every=7), lengths) == 7
    assert check_interval(settings(steps=1868), MANY) == 187
    assert check_interval(settings(steps=1868, validate_every=0), MANY) is None


def test_checks_are_a_tenth_of_the_steps_unless_that_takes_too_long():
    assert check_interval(settings(steps=5000), FEW) == 500
    # A check makes 16 windows x 4 members x 8 frames = 512 calls, a step takes 4 x 16, ten checks 80 steps.
    assert check_interval(settings(steps=500), FEW) == 80
    assert check_interval(settings(steps=159), FEW) is None
    # Half of the steps train two members of a forecast: 4 x 24 calls.
    assert check_interval(settings(steps=159, component="joint"), FEW) == 54


def test_wrong_settings_are_named():
    for field, value in (("validate_every", -1), ("patience", 0)):
        with pytest.raises(config.ConfigError, match=f"^override: train.{field}: must be at least"):
            settings(**{field: value})


# ---- a real training


EVERY, STEPS = 4, 24


def training(data, **train):
    values = {"component": "joint", "steps": STEPS, "validate_every": EVERY, "patience": 2, "learning_rate": 0.03}
    experiment = config.replace(data.experiment, **{f"train.{k}": v for k, v in (values | train).items()})
    stopping = early_stopping(experiment, data, ParentModels(), 0, 1)
    return ComponentTraining(experiment, data, ParentModels(), early_stopping=stopping)


def note(rows):
    return lambda progress: rows.append((progress.step, progress.validation))


@pytest.mark.parametrize("ema", [0.95, 0.0])
def test_what_is_saved_is_the_best_and_a_killed_training_resumes_exactly(tiny_data, tmp_path, ema):
    rows, whole = [], training(tiny_data, ema=ema, patience=None)
    states = {}

    def remember(progress):
        note(rows)(progress)
        states[progress.step] = {name: t.clone() for name, t in whole.model.state_dict().items()}

    whole.advance(STEPS, remember, 5)
    scores = {step: score for step, score in rows if score is not None}
    assert list(scores) == list(range(EVERY, STEPS + 1, EVERY))
    best = min(scores, key=scores.__getitem__)
    whole.save(tmp_path / "whole")
    assert validated(checkpoint.read_meta(tmp_path / "whole")).step == best
    saved = checkpoint.load_component(tmp_path / "whole").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in states[best].items())

    checkpoint.folder.drop_training_state(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["config.json", "model.safetensors"]
    for kill in (EVERY - 1, EVERY, best, best + 1, STEPS - 1):
        part = training(tiny_data, ema=ema, patience=None)
        part.advance(min(kill, STEPS), lambda progress: None, 5)
        part.save(tmp_path / "part")
        again = training(tiny_data, ema=ema, patience=None)
        again.restore(tmp_path / "part")
        again.advance(STEPS, lambda progress: None, 5)
        assert again.early_stopping.found == whole.early_stopping.found
        for ours, theirs in ((again.kept, whole.kept), (again.model, whole.model), (again.module, whole.module)):
            theirs_state = theirs.state_dict()
            assert all(torch.equal(tensor, theirs_state[name]) for name, tensor in ours.state_dict().items())


class Ended:
    """A job whose training ended early."""

    def __init__(self, folder):
        self.folder, self.steps = folder, STEPS


def test_a_training_that_ended_early_is_finished(tiny_data, tmp_path):
    short = training(tiny_data)
    short.early_stopping._score = Scores(0.5, 0.4, 0.6, 0.6, 0.6, 0.6)
    rows = []
    short.advance(STEPS, note(rows), 5)
    end = short.step
    assert end < STEPS and rows[-1] == (end, 0.6)
    short.save(tmp_path / "short")
    assert finished(Ended(tmp_path / "short"))
    assert checkpoint.read_meta(tmp_path / "short").step == end
    line = "short: the weights of step 8 are kept, as they score best on validation (0.400); the training ended early"
    assert kept_early(tmp_path / "short") == f"{line}, after step {end}"
    again = training(tiny_data)  # killed after its last checkpoint: it must not go on
    again.restore(tmp_path / "short")
    again.advance(STEPS, lambda progress: None, 5)
    assert again.step == end


def test_the_score_is_that_of_the_averaged_weights_on_validation(tiny_data):
    """And the same each time, as windows and noise are fixed."""
    one = training(tiny_data)
    rows = []
    one.advance(EVERY, note(rows), EVERY)
    (step, score), model = rows[-1], one.early_stopping.best
    again = early_stopping(one.experiment, tiny_data, ParentModels(), 0, 1)
    assert again.check(step, model) == score
    assert math.isfinite(score)


def test_a_denoiser_without_a_flow_is_not_scored(tiny_data):
    experiment = config.replace(tiny_data.experiment, **{"train.component": "denoiser", "train.validate_every": 5})
    assert early_stopping(experiment, tiny_data, ParentModels(), 0, 1) is None
