"""What a few steps of real trainings show, on data that leave nothing behind."""

import mmap
import tempfile
import time

import pytest
import torch

from raypipe import checkpoint, config
from raypipe.checkpoint import Meta
from raypipe.common import memory
from raypipe.distributed import measuring
from raypipe.distributed.connection import TORCH_CACHE
from raypipe.distributed.measuring import Request, measure_autoencoder, measure_components
from raypipe.forecast.component import ComponentScorer
from raypipe.models.autoencoder import build_autoencoder
from raypipe.models.components import build_component
from raypipe.search.configured import trial_config
from raypipe.workspace.layout import ParentModels
from raypipe.workspace.stand_in import stand_in
from tests.raytools import listing, tiny

LATENT = (4, 4, 4)


def save_flow(data):
    """An untrained flow, for diffusions to be trained on."""
    folder = data.workspace.run("flow", "flow-00")
    model = data.experiment.model
    meta = Meta(data.channels, component="flow", model=model, autoencoder_hash=data.autoencoder_hash)
    checkpoint.save_component(folder, build_component("flow", model, data.channels), meta)
    return folder


@pytest.fixture
def request_for(tmp_path, monkeypatch):
    """A request for trainings with these configs; temporary files are in a folder that must be empty in the end.

    Time is CPU time, as others use the machine.
    """
    monkeypatch.setattr(measuring, "SECONDS", 0.2)
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    monkeypatch.setenv(TORCH_CACHE, str(tmp_path / "torch"))
    experiment = tiny()
    checkpoint.save_autoencoder(tmp_path / "a", build_autoencoder(experiment.autoencoder), experiment.autoencoder)
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    yield lambda *experiments, threads=(1, 1): Request(experiments, files, LATENT, threads)
    assert listing(tmp_path / "temporary") == []


def test_a_joint_training_costs_more_once_it_is_scored(request_for):
    values = {"train.loss": "crps", "train.forecast_frames": 3, "train.forecast_members": 4, "model.backbone": "conv"}
    experiment = trial_config(tiny(**{"model.inner_dim": 32}), "joint", values)
    [found] = measure_components(request_for(experiment))
    assert found.trial.scored > 2 * found.trial.velocity > 0  # it makes twelve times as many calls of the network
    assert found.score > 0 and found.worker == found.trial and found.device_memory is None
    assert 0 < found.memory < found.process and found.start > 0


def test_the_seconds_of_a_score_are_those_of_a_whole_one(request_for):
    experiment = trial_config(tiny(**{"evaluation.windows": 64, "evaluation.members": 4}), "flow", {})
    request = request_for(experiment)
    with stand_in(experiment, request.autoencoder, LATENT, clips=16) as data:
        flow = build_component("flow", experiment.model, LATENT[0])
        scorer = ComponentScorer(experiment, data, ParentModels())
        began = time.process_time()
        scorer("flow", flow)
        whole = time.process_time() - began
    [found] = measure_components(request)
    assert 0.4 < found.score / whole < 2.5


@pytest.mark.parametrize("component", ["denoiser", "diffusion"])
@pytest.mark.parametrize("mode", ["cache", "off"])
def test_components_on_a_flow(request_for, component, mode):
    experiment = config.replace(trial_config(tiny(), component, {}), **{"latents.mode": mode})
    [found] = measure_components(request_for(experiment, threads=(1, 2)))
    torch.set_num_threads(1)
    assert found.trial.velocity == found.trial.scored > 0 and found.worker != found.trial


def test_an_autoencoder(request_for):
    [trained] = measure_autoencoder(request_for(tiny()), True, False)
    [there] = measure_autoencoder(request_for(tiny()), False, False)
    assert trained.worker.velocity > 0 and there.worker.velocity == 0
    assert there.encode > 0 and trained.encode > 0


def test_the_memory_of_a_process():
    size = 2**26
    memory.forget_most()
    before = memory.held()
    with mmap.mmap(-1, size) as block:  # not from the heap, which may have as much to reuse
        block.write(b"x" * size)
        assert memory.held() - before > 0.9 * size
    assert memory.most_held() - before > 0.9 * size
