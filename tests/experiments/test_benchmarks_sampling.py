"""The benchmark of samplers, on the tiny experiment with random weights."""

import json
import shutil

import pytest
import torch

from raypipe import checkpoint, cli
from raypipe.common.files import write_json
from raypipe.models.components import build_component
from tests.scripts import load_script


@pytest.fixture(scope="module")
def sampling():
    return load_script("benchmarks/sampling")


@pytest.fixture
def storage(own_data):
    """A storage root with a finished search's best/, of random weights; its noise is small."""
    experiment, workspace = own_data.experiment, own_data.workspace
    shutil.copytree(workspace.autoencoder, workspace.best / "autoencoder")
    for seed, component in enumerate(("flow", "diffusion")):
        torch.manual_seed(seed)
        module = build_component(component, experiment.model, own_data.channels)
        meta = checkpoint.Meta(own_data.channels, component=component, model=experiment.model)
        checkpoint.save_component(workspace.best / component, module, meta)
    manifest = {"flow": "f", "diffusion": "g", "alpha": 1.0, "beta": 1e-4, "steps": 2, "num_input_frames": 2}
    manifest |= {"image_size": 32, "frame_stride": 1, "dataset": "demo"}
    write_json(workspace.best / "manifest.json", manifest)
    return workspace.storage


def test_lines(sampling, storage, capsys, monkeypatch):
    shifted = lambda fields, x, u, noise: [field(x, u) + 1e-3 for field in fields]  # noqa: E731  # quicker than to compile
    monkeypatch.setattr(sampling, "CompiledEvaluate", lambda: shifted)
    assert cli.run(sampling.main, sampling.PROG, ["--storage", str(storage), "--quick"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    theirs, ours = (line for line in lines if line["benchmark"] == "sampling" and "sampler" in line)
    assert theirs["sampler"] == ours["against"] == sampling.REFERENCE
    assert ours["ratio"] == pytest.approx(ours["frames_per_second"] / theirs["frames_per_second"], rel=0.01)
    assert theirs["drifts_per_frame"] >= 3  # it tries a step whole and in halves
    assert ours["psnr"] == pytest.approx(theirs["psnr"], abs=0.2)  # there is hardly any noise to tell them apart
    assert ours["crps_ratio"] == pytest.approx(theirs["crps_ratio"], rel=0.1)
    (compiled,) = (line for line in lines if line["benchmark"] == "compiled")
    assert compiled["against"] == "eager" and compiled["ratio"] > 0 and compiled["first_forecast_seconds"] > 0
    assert 2e-3 < float(compiled["largest_difference"]) < 5e-3  # 1e-3 a frame over 3 frames, and what follows from it
    solvers = [line for line in lines if line["benchmark"] == "solvers"]
    assert [(x["sampler"], x["steps"], x["evaluations_per_frame"]) for x in solvers] == [
        ("euler_maruyama", 1, 2), ("milstein", 1, 3), ("heun_drift", 1, 3),
        ("euler_maruyama", 2, 4), ("milstein", 2, 6), ("heun_drift", 2, 6),
    ]  # fmt: skip
    assert solvers[3]["ratio"] == 1.0
    assert [line["batch_size"] for line in lines if line["benchmark"] == "batches"] == [16, 32]


def test_the_published_sampler_solves_the_same_equation(sampling, storage):
    """With hardly any noise, both come to the ODE's solution, theirs to its tolerance of 1e-2 a step."""
    trial = sampling.open_trial(sampling.make_parser().parse_args(["--storage", str(storage), "--quick"]))
    theirs, ours = sampling.sample_published(trial, sampling.Drifts()), sampling.sample(trial, "heun_drift", 16)
    assert theirs.shape == ours.shape == (4, 2, 3, 4, 4, 4)
    moved = (ours - trial.windows.last[:, None, None]).abs().mean()
    assert (theirs - ours).abs().mean() < 0.1 * moved


def test_no_model(sampling, tmp_path, capsys):
    assert cli.run(sampling.main, sampling.PROG, ["--storage", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "--model: no finished search in" in error and "run make demo first" in error
    assert error.count("\n") == 1


def test_a_model_without_its_experiment(sampling, storage, tmp_path, capsys):
    best = shutil.copytree(storage / "tiny" / "best", tmp_path / "best")
    assert cli.run(sampling.main, sampling.PROG, ["--model", str(best)]) == 2
    assert "its experiment's validation clips are needed" in capsys.readouterr().err
