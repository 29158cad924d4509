"""An evaluation: the model card, the cases that the report shows; without a test split, what is kept and said."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from raypipe import checkpoint, config
from raypipe.config import COMPONENTS, ConfigError
from raypipe.evaluation import run
from raypipe.evaluation.protocol import in_words, protocol_of, read_protocol
from raypipe.evaluation.run import run_evaluation
from raypipe.forecast.decoding import DECODINGS
from raypipe.forecast.film import read_case
from raypipe.forecast.manifest import read_manifest
from raypipe.forecast.predictor import load_predictor
from raypipe.models.components import build_component
from raypipe.report.page import CASES, write_report
from raypipe.search import records
from raypipe.search.finalists import Finalist, write_finalists

SMALL = {
    "evaluation.steps": [1],
    "evaluation.multipliers": [0.5],
    "evaluation.betas": [0.5],
    "evaluation.alphas": [1.0],
}


def score_here(data, split, wanted, count, table, *, decode):
    """`_score_split` without Ray."""
    for combination in wanted:
        if not table.has(split, combination, decoded=decode):
            table.add(split, run._score(data, split, combination, count, decode, 1, None))


def searched(data):
    """The experiment with small settings, and untrained finalists of every stage."""
    workspace, experiment = data.workspace, config.replace(data.experiment, **SMALL)
    for seed, component in enumerate(COMPONENTS):
        torch.manual_seed(seed)
        module = build_component(component, experiment.model, data.channels)
        meta = checkpoint.Meta(data.channels, component=component, model=experiment.model)
        checkpoint.save_component(workspace.run(component, "a-s0"), module, meta)
        flow = "a-s0" if component == "diffusion" else None
        default = Finalist("a", "a-s0", 0.5, (0.5,), 1.0, (0.3,) * 4, 0.1, None, flow=flow, published=True)
        write_finalists(workspace, component, [default])
    return experiment


def test_the_worst_the_median_and_the_best_test_window_are_shown(own_data, monkeypatch):
    experiment = searched(own_data)
    monkeypatch.setattr(run, "_score_split", score_here)
    rows = run_evaluation(experiment, own_data.workspace, 1)
    chosen = next(row for row in rows if row["split"] == "test" and row["chosen"])
    cases = [read_case(own_data.workspace.folder / "samples" / "cases" / f"{name}.npz") for name in CASES]
    assert [case.score for case in cases] == sorted((case.score for case in cases), reverse=True)
    assert all(np.isclose(case.mean, chosen["crps_ratio"]) for case in cases)
    assert "The worst, the median and the best forecast" in write_report(own_data.workspace).read_text()


def card_of(workspace):
    """The metadata of the model card in best/, its table as a dict of rows by their first cell, and its text."""
    text = (workspace.best / "README.md").read_text()
    _, block, body = text.split("---\n", 2)
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    header, _, *rows = lines
    return yaml.safe_load(block), {row[0]: dict(zip(header, row, strict=True)) for row in rows}, body


def test_best_has_a_model_card(own_data, monkeypatch):
    workspace, experiment = own_data.workspace, searched(own_data)
    monkeypatch.setattr(run, "_score_split", score_here)
    rows = run_evaluation(experiment, workspace, 1)
    metadata, table, body = card_of(workspace)
    (chosen,) = [row for row in rows if row["split"] == "test" and row["chosen"]]
    assert set(table) == {"**this model**", "flow alone", "default", "climatology", "persistence", "perfect latents"}
    mine = table["**this model**"]
    assert mine["CRPS ratio"] == f"{chosen['crps_ratio']:.3f} ± {chosen['crps_ratio_se']:.3f}"
    assert float(mine["PSNR"]) == pytest.approx(chosen["psnr"], abs=5e-4)
    assert table["persistence"]["CRPS ratio"].startswith("1.000")
    assert next(iter(table)) == "perfect latents"  # best first
    protocol = read_protocol(workspace)
    assert in_words(protocol, "test", "protocol.json") in body
    kept = json.loads((workspace.best / "protocol.json").read_text())
    assert kept.keys() == protocol.keys() and kept["windows"] == protocol["windows"] and kept["dataset"]["root"] is None
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"] == {"type": "demo", "name": "demo", "split": "test"}
    scores = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert scores["crps_ratio"] == chosen["crps_ratio"] and scores["ssim"] == chosen["ssim"]
    data = ModelCard.load(workspace.best / "README.md").data  # as the hub's own package reads it
    assert data.library_name == "raypipe" and data.model_name == workspace.name
    assert {e.metric_type: e.metric_value for e in data.eval_results} == scores
    assert "![" in body and "](strip.png)" in body
    with Image.open(workspace.best / "strip.png") as image:
        wide = experiment.evaluation.horizon + 1
        assert image.width > wide * 32 and image.height > 2 * 32  # two rows: a given frame, then those predicted
    code = body.split("```python\n")[1].split("```")[0]
    exec(code.replace("hf://USER/NAME", str(workspace.best)), names := {"frames": torch.zeros(1, 4, 3, 32, 32)})
    assert names["future"].shape == (1, 4, 3, 3, 32, 32)
    assert len(code.splitlines()) == 3
    assert str(workspace.storage) not in (workspace.best / "README.md").read_text()


def test_without_a_test_split_the_choice_is_kept_and_the_lack_is_said(own_data, monkeypatch):
    workspace, experiment = own_data.workspace, searched(own_data)
    shutil.rmtree(workspace.dataset(experiment) / "test")
    monkeypatch.setattr(run, "_score_split", score_here)
    with pytest.raises(ConfigError, match=r"dataset.root: no test split in .*; add the split and run python"):
        run_evaluation(experiment, workspace, 1)
    manifest = read_manifest(workspace.best)
    assert manifest.flow == "a" and manifest.decoding in DECODINGS
    finalists = [row for row in records.read_rows(workspace.evaluation / "combinations.parquet") if row["decoding"]]
    kept = next(row for row in finalists if row["decoding"] == manifest.decoding and row["baseline"] is None)
    assert manifest.last_frame_won == (kept["crps_ratio_pixels"] >= 1)
    load_predictor(workspace.best)
    metadata, table, _ = card_of(workspace)
    assert metadata["model-index"][0]["results"][0]["dataset"]["split"] == "validation"
    assert {"**this model**", "persistence"} <= set(table) and (workspace.best / "strip.png").is_file()
    rows = records.read_rows(workspace.evaluation / "combinations.parquet")
    assert rows and {row["split"] for row in rows} == {"validation"}
    still = next(row for row in rows if row["baseline"] == "persistence")
    protocol = read_protocol(workspace)
    assert protocol == protocol_of(own_data) and list(protocol["windows"]) == ["validation"]
    assert still["crps_ratio_pixels"] == pytest.approx(1) and still["decoding"] is None
    whole = ("energy_ratio", "variogram_ratio", "variogram_ratio_pixels")
    assert [still[name] for name in whole] == pytest.approx([1, 1, 1])
    for row in rows:
        members = len(row["rank_histogram"]) - 1
        assert members == (1 if row["baseline"] == "persistence" else experiment.evaluation.members)
        assert (row["rank_histogram_pixels"] is None) == (row["crps_ratio_pixels"] is None)
        assert len(row["spread_skill_by_step"]) == experiment.evaluation.horizon
        assert (row["coverage_50"] is None) == (members < 3) and row["coverage_90"] is None
