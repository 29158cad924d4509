"""What many tests share: one torch thread, and a tiny experiment with a real dataset, autoencoder and latents."""

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import settings

from raypipe import checkpoint, config
from raypipe.data.latents import cache_latents, finish
from raypipe.data.splits import SPLITS
from raypipe.models.autoencoder import build_autoencoder, measure_scale
from raypipe.workspace.dataset import ExperimentData, frame_encoder, prepare_dataset
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import begin
from tests import raytools, readmetools

settings.register_profile("raypipe", deadline=None)  # other work on the machine must not fail a test
settings.load_profile("raypipe")

TINY = {
    "name": "tiny",
    "dataset.image_size": 32,
    "dataset.num_frames": 5,
    "demo.train_clips": 6,
    "demo.val_clips": 4,
    "demo.test_clips": 3,
    "demo.clip_frames": 10,
    "autoencoder.width": 8,
    "autoencoder.batch_size": 4,
    "model.num_input_frames": 2,
    "model.inner_dim": 16,
    "train.batch_size": 4,
    "train.steps": 20,
    "train.warmup_steps": 5,
    "evaluation.windows": 6,
    "evaluation.test_windows": 5,
    "evaluation.fit_windows": 5,
    "evaluation.horizon": 3,
    "evaluation.members": 3,
    "evaluation.test_members": 4,
    "evaluation.climatology_members": 5,
}
"""Latents of 4 x 4 x 4; every network call costs a millisecond or two."""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A prepared experiment: demo frames, an untrained autoencoder with its scale, and the latent cache. Read only."""
    experiment = config.replace(config.Experiment(), **TINY)
    workspace = Workspace(tmp_path_factory.mktemp("storage"), experiment.name)
    data = ExperimentData(experiment, workspace)
    prepare_dataset(workspace, experiment, lambda done, total: None)
    begin(workspace, experiment)
    torch.manual_seed(0)
    autoencoder = build_autoencoder(experiment.autoencoder)
    frames = data.frames("train")
    some = torch.stack([torch.from_numpy(frames.clip(i)) for i in range(len(frames))]).flatten(0, 1)
    autoencoder.scale.copy_(measure_scale(autoencoder, [some.movedim(-1, 1) / 127.5 - 1]))
    checkpoint.save_autoencoder(workspace.autoencoder, autoencoder, experiment.autoencoder)
    for split in SPLITS:
        encode = frame_encoder(checkpoint.load_autoencoder(workspace.autoencoder))
        cache_latents(data.frames(split), data.cache(split), encode, 16, data.cache_key(split))
        finish(data.frames(split), data.cache(split), data.cache_key(split))
    return data


@pytest.fixture
def own_data(tiny_data, tmp_path):
    """A copy of the tiny experiment that a test may write to."""
    shutil.copytree(tiny_data.workspace.storage, tmp_path / "storage")
    return ExperimentData(tiny_data.experiment, replace(tiny_data.workspace, storage=tmp_path / "storage"))


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[raytools.Head]:
    """The Ray that all tests share which neither end it nor need another kind."""
    with raytools.ray_head(tmp_path_factory.mktemp("head") / "log") as made:
        yield made


@pytest.fixture(scope="module")
def two_cpus(head: raytools.Head) -> Iterator[None]:
    """This process has joined the shared Ray, which has two CPUs."""
    with raytools.joined(head):
        yield


@pytest.fixture(scope="session")
def user(head: raytools.Head, tmp_path_factory: pytest.TempPathFactory) -> readmetools.User:
    """Somebody with a fresh copy of the repository, who types the README's commands."""
    return readmetools.new_user(tmp_path_factory.mktemp("readme"), head)


@pytest.fixture(scope="session")
def finished(user: readmetools.User) -> readmetools.Finished:
    """The README's demo, interrupted, resumed and finished."""
    return readmetools.run_demo(user)
