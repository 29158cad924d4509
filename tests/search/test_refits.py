"""What is trained again, which winners of a stage are too close to choose one, and the closer look at those."""

import json

import numpy as np
import pytest

from raypipe import checkpoint, config, train
from raypipe.forecast.component import ComponentScorer
from raypipe.metrics.ensemble import Score
from raypipe.search import records
from raypipe.search.configured import finalist_values
from raypipe.search.finalists import Trial
from raypipe.search.refits import refit, rivals_of
from raypipe.search.stage import Stage
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels, Workspace
from tests import raytools
from tests.raytools import TINY, tiny


def score(shift, spread=0.0, windows=40, seed=0):
    """Scores that share their windows' difficulty and differ by `shift`, and by noise of a window."""
    difficulty = np.random.default_rng(1).uniform(0.3, 0.7, (windows, 1))
    noise = spread * np.random.default_rng(seed).standard_normal((windows, 1))
    crps = np.repeat(difficulty + shift + noise, 3, 1)
    ones = np.ones_like(crps)
    return Score(crps, ones, ones, ones, 8)


def rivals(*groups):
    """By number, best first."""
    return rivals_of(dict(enumerate(groups)))


def test_the_error_that_counts_is_of_the_paired_difference():
    assert rivals([score(0.0)], [score(0.01)]) == [0]  # the scores' own errors are twice that
    assert score(0.0).ratio.se > 0.01
    assert sorted(rivals([score(0.0, 0.2, seed=2)], [score(0.001, 0.2, seed=3)])) == [0, 1]


def test_only_those_as_good_as_the_best_are_its_rivals():
    far, near = [score(0.3)], [score(0.0), score(0.02)]
    assert rivals(far, near) == [1]
    assert sorted(rivals(far, near, [score(0.01)])) == [1, 2]  # alike in the mean over seeds
    assert sorted(rivals(near, near)) == [0, 1]
    assert rivals(near) == [0]
    assert rivals(near, [score(np.nan)]) == [0]
    assert rivals() == []


def test_a_trial_that_changed_its_values_is_trained_again_with_its_last(tmp_path):
    stage = Stage(config.Experiment(), Workspace(tmp_path, "x"), "flow")
    rates = [("flow", 20, 2e-3), ("flow", 30, 3e-3), ("flow", 10, 1e-3), ("diffusion", 40, 4e-3)]
    rows = [
        {"stage": stage, "trial": "flow-01", "step": step, "values": json.dumps({"train.learning_rate": rate})}
        for stage, step, rate in rates
    ]
    records.write_rows(stage.workspace.trials, rows)
    assert finalist_values(stage.workspace, "flow", "flow-01") == {"train.learning_rate": 3e-3}
    assert finalist_values(stage.workspace, "flow", "flow-02") is None


# ---- with real refits

STEPS = 40
RATES = {"flow-00": 3e-3, "flow-01": 3e-3, "flow-02": 1e-7}
"""The first two are twins, and no window tells them apart; the last has learned nothing."""


@pytest.fixture(scope="module")
def stage(two_cpus, tmp_path_factory):
    """A flow search that is over, with three trials."""
    root = tmp_path_factory.mktemp("refits")
    values = {
        "autoencoder.path": str(raytools.save_autoencoder(root / "autoencoder")),
        "search.flow.refit_steps": STEPS,
    }
    more = {
        "train.checkpoint_every": STEPS // 2,
        "demo.val_clips": 16,
        "evaluation.windows": 16,
        "evaluation.members": 3,
    }
    stage = Stage(tiny(**TINY | values | more), Workspace(root / "storage", "demo"), "flow")
    train.prepare(stage.experiment, stage.workspace)
    return stage


@pytest.fixture(scope="module")
def finalists(stage):
    rows = [
        {"stage": "flow", "trial": name, "step": 18, "status": "finished", "refit": False, "objective": 0.5}
        | {"noise_std": 0.1, "loss": "mse"}
        | {"values": json.dumps({"train.loss": "mse", "train.learning_rate": rate})}
        for name, rate in RATES.items()
    ]
    records.write_rows(stage.workspace.trials, rows)
    return refit(stage, [Trial(row["trial"], 0.5, 0.1, "mse", row) for row in rows])


def scored(stage, model, **evaluation):
    """What a refit scores without Ray."""
    experiment = config.replace(stage.experiment, **evaluation)
    module = checkpoint.load_component(stage.workspace.run("flow", model))
    return ComponentScorer(experiment, ExperimentData(experiment, stage.workspace), ParentModels())(
        "flow", module
    ).score


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_rivals_are_scored_again_on_more_windows_and_members(stage, finalists):
    by_name = {f.trial: f for f in finalists}
    assert sorted(by_name) == sorted(RATES)
    evaluation = stage.experiment.evaluation
    closer = {"evaluation.windows": 4 * evaluation.windows, "evaluation.members": 2 * evaluation.members}
    for name in ("flow-00", "flow-01"):
        again = [scored(stage, f"{name}-s{seed}", **closer) for seed in range(TINY["search.finalist_seeds"])]
        assert len(again[0].crps) > evaluation.windows and again[0].members == 2 * evaluation.members
        ratios = [score.ratio.value for score in again]
        assert by_name[name].closer == pytest.approx(np.mean(ratios))
        assert by_name[name].closer != pytest.approx(by_name[name].objective)
        assert by_name[name].model == f"{name}-s{np.argmin(ratios)}"


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_who_is_clearly_behind_is_not_looked_at_again_and_ranks_last(stage, finalists):
    assert finalists[-1].trial == "flow-02"
    assert finalists[-1].closer is None
    best, last = (scored(stage, f"{name}-s0") for name in ("flow-00", "flow-02"))
    assert finalists[-1].objectives[0] == pytest.approx(last.ratio.value)
    assert last.minus(best).value > 3 * last.minus(best).se


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_what_is_on_record_of_a_refit_is_the_score_that_all_share(stage, finalists):
    rows = {row["trial"]: row for row in records.read_rows(stage.workspace.trials) if row["refit"]}
    assert sorted(rows) == sorted(f"{name}-s{seed}" for name in RATES for seed in range(2))
    for f in finalists:
        assert [rows[f"{f.trial}-s{seed}"]["objective"] for seed in range(2)] == pytest.approx(list(f.objectives))
    folder = stage.workspace.run("flow", "flow-01-s0")
    assert len(records.read_score(folder, STEPS).crps) == stage.experiment.evaluation.windows
