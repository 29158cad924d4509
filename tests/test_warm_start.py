"""The best points of another search: those that this space can propose."""

import json

from raypipe import records
from raypipe.config import Axis
from raypipe.space import decode
from raypipe.warm_start import best_points

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
