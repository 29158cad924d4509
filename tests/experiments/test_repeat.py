"""What experiments/repeat.py says of several seeds; the pipeline itself is test_pipeline's."""

import json
import sys

import numpy as np
import pytest

from raypipe.common.files import write_json
from raypipe.search import records
from raypipe.workspace.layout import Workspace
from tests.scripts import load_script

SCORES = {  # of seeds 0, 1 and 2; the best default is another one in the last
    "chosen": (0.50, 0.52, 0.60),
    "flow": (0.70, 0.74, 0.80),
    "published": (0.75, 0.76, 0.58),
    "persistence": (1.0, 1.0, 1.0),
}


@pytest.fixture
def repeat(monkeypatch):
    """The script, and the one that it imports from beside it."""
    monkeypatch.setitem(sys.modules, "pipeline", load_script("pipeline"))
    return load_script("repeat")


@pytest.fixture
def storage(tmp_path, repeat):
    """Three seeds that are over."""
    for seed in range(3):
        workspace = Workspace(tmp_path, f"demo-seed{seed}")
        rows = [
            {"split": split, "baseline": None if name == "chosen" else name, "chosen": name == "chosen"}
            | dict.fromkeys(repeat.METRICS, 1.0 + seed)
            | {"crps_ratio": scores[seed] + (0 if split == "test" else 0.2)}
            for split in ("validation", "test")
            for name, scores in SCORES.items()
        ]
        records.write_rows(workspace.evaluation / "combinations.parquet", rows)
        write_json(workspace.best / "manifest.json", {})
    clip = np.zeros((1, 6, 16, 16, 3), np.uint8)
    samples = tmp_path / "demo-seed0" / "samples"
    samples.mkdir()
    np.savez(samples / "sample-2.npz", truth=clip[0], prediction=clip[:, :4], interpolated=clip[0, :4], given=2)
    return tmp_path


def test_mean_and_spread_of_the_difference_from_the_best_default_of_the_same_seed(repeat, storage, capfd):
    assert repeat.main(["--seeds", "3", "--storage", str(storage)]) == 0
    found = json.loads((storage / "demo-seeds.json").read_text())["chosen_minus_best_default"]
    gaps = [0.50 - 0.70, 0.52 - 0.74, 0.60 - 0.58]
    assert found["values"] == pytest.approx(gaps)
    assert found["mean"] == pytest.approx(sum(gaps) / 3)
    assert found["sd"] == pytest.approx(np.std(gaps, ddof=1))
    assert found["defaults"] == ["flow", "flow", "published"]
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "best baseline" in line]
    assert line == "chosen minus best baseline of the same seed (flow, flow, published), crps_ratio: -0.133 +- 0.133"


def test_a_rival_has_a_row_for_each_number_of_steps(repeat):
    rows = [
        {"split": "test", "baseline": "foellmer", "steps": steps} | dict.fromkeys(repeat.METRICS, score)
        for steps, score in ((1, 0.5), (4, 0.3))
    ]
    assert list(repeat.summarize([rows])) == ["foellmer 4", "foellmer 1"]


def test_one_seed_has_no_spread(repeat, storage):
    assert repeat.main(["--seeds", "1", "--storage", str(storage)]) == 0
    kept = json.loads((storage / "demo-seeds.json").read_text())
    assert kept["runs"] == 1
    assert kept["chosen_minus_best_default"]["sd"] == 0.0
    assert list(kept["summary"]) == ["chosen", "flow", "published", "persistence"]  # best first
    assert kept["summary"]["chosen"]["psnr"]["values"] == [1.0]
