"""The best points of another search: those that this space can propose."""

import json
from functools import partial

import pytest

from raypipe import tune
from raypipe.config import Axis
from raypipe.search import records
from raypipe.search.first_points import best_points, default_point
from raypipe.search.space import decode
from raypipe.workspace.layout import Workspace
from tests.raytools import TINY, flags, outcome, tiny

AXES = {
    "train.noise_std": Axis(low=0.01, high=0.4, log=True, zero=True),
    "train.loss": Axis(choices=["nll", "mse"]),
}
DEFAULT = {"train.noise_std": 0.1, "train.loss": "nll"}


def row(trial, objective, noise, loss="nll", **more):
    values = {"train.noise_std": noise, "train.loss": loss, **more}
    return {
        "stage": "flow", "trial": trial, "step": 300, "status": "finished", "refit": False,
        "objective": objective, "noise_std": noise, "loss": loss, "values": json.dumps(values),
    }  # fmt: skip


def test_the_best_come_first_and_what_does_not_fit_stays_out(tmp_path):
    rows = [
        row("a", 0.5, 0.2),
        row("b", 0.4, 0.0, "mse"),
        row("outside", 0.1, 0.9),
        row("other loss", 0.2, 0.1, "huber"),
        row("default", 0.3, 0.1),
        row("worst", 0.9, 0.05),
        row("refit", 0.01, 0.3) | {"refit": True},
        row("failed", 0.02, 0.3) | {"status": "failed"},
    ]
    records.write_rows(tmp_path / "trials.parquet", rows)
    found = best_points(tmp_path, "flow", AXES, DEFAULT, 2)
    assert [decode(AXES["train.noise_std"], point["train.noise_std"]) for point in found] == [0.0, 0.2]
    assert [point["train.loss"] for point in found] == ["mse", "nll"]
    wider = {**AXES, "model.depth": Axis(choices=[1, 2])}
    assert best_points(tmp_path, "flow", wider, DEFAULT, 2) == []
    assert best_points(tmp_path, "denoiser", AXES, DEFAULT, 2) == []


def searched(workspace):
    """The rows of the flow's trials, at their last rung."""
    rows = [row for row in records.read_rows(workspace.trials) if row["stage"] == "flow" and not row["refit"]]
    return {row["trial"]: row for row in sorted(rows, key=lambda row: row["step"])}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.demo
@pytest.mark.long
def test_a_search_of_another_dataset_begins_with_the_best_points_of_one_that_is_over(two_cpus, finished, tmp_path):
    first = Workspace(finished.storage, "demo")
    short = {
        "demo.seed": 7,
        "autoencoder.path": str(first.autoencoder),
        "search.flow.trials": 8,
        "search.flow.steps": 6,
        "search.rungs": 1,
        "search.top_k": 1,
        "search.finalist_seeds": 1,
        "search.flow.refit_steps": 6,
    }
    argv = ["--storage", tmp_path, "--warm-start", first.folder, *flags(TINY | short)]
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", argv) == 0
    second = Workspace(tmp_path, "demo")
    datasets = [json.loads((place.folder / "manifest.json").read_text())["dataset"] for place in (first, second)]
    assert datasets[0]["train"] != datasets[1]["train"]
    before, after = searched(first), searched(second)
    assert len(after) == 8 and {row["status"] for row in after.values()} == {"finished"}
    default = default_point(tiny(), "flow")
    ranked = [json.loads(row["values"]) for row in sorted(before.values(), key=lambda row: row["objective"])]
    best = [point for point in ranked if point != default][:2]  # a quarter of the trials
    assert len(best) == 2
    assert [json.loads(after[f"flow-{i:02d}"]["values"]) for i in range(3)] == [default, *best]
    assert json.loads(after["flow-03"]["values"]) not in ranked
