"""What is kept of the models of trials: by `search.keep`, and only of trials that have ended."""

import random

import optuna
import pytest
import torch

from raypipe import checkpoint
from raypipe.checkpoint import MODEL, OPTIMIZER, Meta
from raypipe.common.errors import UserError
from raypipe.models.components import build_component
from raypipe.search.finalists import Finalist, Trial
from raypipe.search.keep import tidy
from raypipe.search.study import has_ended, known_trials, open_storage
from tests.raytools import tiny
from tests.search.simulated import begin, resume, search

optuna.logging.set_verbosity(optuna.logging.ERROR)
MODELS = [f"flow-{i:02d}" for i in range(6)] + ["flow-04-s0"]


@pytest.fixture
def stage(tmp_path):
    """A search of six trials, all with saved trainings, of which some have ended and others were cut off."""
    stage = begin(tmp_path, **{"search.flow.trials": 6, "search.scheduler": "none", "search.keep": 1})
    model = tiny().model
    for name in MODELS:
        module = build_component("flow", model, 4)
        optimizer = torch.optim.AdamW(module.parameters())
        sum(p.sum() for p in module.parameters()).backward()
        optimizer.step()
        average = build_component("flow", model, 4)
        meta = Meta(latent_channels=4, component="flow", model=model, step=18)
        checkpoint.save_component(stage.workspace.run("flow", name), average, meta, optimizer, live=module)
    return stage


def files(stage, name):
    return {path.name.split(".")[0] for path in stage.workspace.run("flow", name).iterdir()}


WHOLE, WEIGHTS, NOTHING = {"config", "model", "optimizer", "live"}, {"config", "model"}, {"config"}


def ended(stage):
    known = known_trials(open_storage(stage.workspace.study), "flow")
    return {f"flow-{t.number:02d}" for t in known if has_ended(t)}


def test_a_trial_that_has_ended_keeps_its_weights_and_the_others_all(stage):
    search(stage, random.Random(1), events=9)
    over = ended(stage)
    assert 0 < len(over) < 6
    for name in MODELS:
        assert files(stage, name) == (WEIGHTS if name in over else WHOLE), name


@pytest.mark.parametrize(
    ("keep", "best"), [(1, ["flow-02"]), (2, ["flow-02", "flow-05"]), ("finalists", []), ("all", MODELS)]
)
def test_of_a_finished_stage_the_best_trials_and_all_finalists_keep_their_weights(stage, tmp_path, keep, best):
    stage = resume(tmp_path, "--search.keep", keep)
    search(stage, random.Random(1))
    assert ended(stage) == set(MODELS[:6])
    ranked = [Trial(f"flow-{i:02d}", 0.1, 0.1, "nll", {}) for i in (2, 5, 4, 0, 1, 3)]
    found = [Finalist("flow-04", "flow-04-s0", 0.4, (0.4,), 1.0, (), 0.1, "nll", models=("flow-04-s0",))]
    for _ in range(2):  # a second call, as after an interruption, changes nothing
        tidy(stage, ranked, found)
        for name in MODELS:
            weights = WHOLE if keep == "all" else WEIGHTS if name in [*best, "flow-04", "flow-04-s0"] else NOTHING
            assert files(stage, name) == weights, name


def test_what_is_kept_can_be_loaded_and_what_is_not_says_so(stage):
    folder = stage.workspace.run("flow", "flow-00")
    before = checkpoint.weights_hash(folder)
    checkpoint.drop_training_state(folder)
    assert not (folder / OPTIMIZER).exists()
    assert checkpoint.weights_hash(folder) == before
    checkpoint.load_component(folder)
    checkpoint.drop_weights(folder)
    assert not (folder / MODEL).exists()
    with pytest.raises(UserError, match=r"no model\.safetensors.*search\.keep"):
        checkpoint.load_component(folder)
