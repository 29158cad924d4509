"""The latent cache made by real Ray workers: whole whoever dies, made once, refused when it is wrong."""

import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.cloudpickle
import torch

from raypipe import checkpoint, config
from raypipe.config import ConfigError
from raypipe.data.latents import encode_shard, finish
from raypipe.data.shards import ShardWriter
from raypipe.data.splits import SPLITS
from raypipe.distributed.encoding import prepare_latents
from raypipe.models.autoencoder import build_autoencoder
from raypipe.workspace.dataset import ExperimentData, frame_encoder
from raypipe.workspace.layout import Workspace
from tests.raytools import wait_for

pytestmark = pytest.mark.cluster

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests


@pytest.fixture
def data(own_data):
    """The tiny experiment with a clip a shard, and nothing encoded."""
    for split in SPLITS:
        frames = own_data.frames(split)
        content = [frames.clip(i) for i in range(len(frames))]
        shutil.rmtree(frames.folder)
        with ShardWriter(frames.folder, clips_per_shard=1, key=frames.key) as writer:
            for name, clip in zip(frames.names, content, strict=True):
                writer.add(name, clip, source="demo")
    shutil.rmtree(own_data.workspace.folder / "latents")
    return own_data


def shards_in(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a file was written again."""
    found = {path.name: path.stat() for path in folder.glob("shard_*.hdf5")}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


@dataclass(frozen=True)
class DyingSources(ExperimentData):
    """The worker that reads `victim` of the training clips dies, the first time only or always."""

    driver: int = 0
    victim: int = 3
    mark: Path = Path()
    always: bool = False

    def frames(self, split):
        shards = super().frames(split)
        if os.getpid() == self.driver or split != "train":
            return shards
        read = shards.windows

        def dying(clips, starts, window, stride=1):
            if clips[0] == self.victim and (self.always or not self.mark.exists()):
                wait_for(lambda: shards_in(self.cache("train")))
                self.mark.write_text(json.dumps(shards_in(self.cache("train"))))
                os._exit(1)
            return read(clips, starts, window, stride)

        shards.windows = dying
        return shards


@dataclass(frozen=True)
class ListeningWorkspace(Workspace):
    """Notes which processes ask where the autoencoder is, which is to load it."""

    log: Path = Path()

    @property
    def autoencoder(self):
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return self.folder / "autoencoder"


def dying(data, tmp_path, **more):
    workspace = ListeningWorkspace(data.workspace.storage, data.workspace.name, tmp_path / "loads")
    experiment = replace(data.experiment, train=replace(data.experiment.train, max_failures=1))
    return DyingSources(experiment, workspace, driver=os.getpid(), mark=tmp_path / "mark", **more)


def expected(data, split, i):
    encode = frame_encoder(checkpoint.load_autoencoder(data.workspace.autoencoder), torch.device("cpu"))
    return encode(data.encoded_frames(split).clip(i)).astype(np.float16)


@pytest.mark.slow
@pytest.mark.long
def test_a_worker_that_dies_is_replaced_and_nothing_finished_is_done_twice(two_cpus, data, tmp_path, capfd):
    data = replace(data, experiment=config.replace(data.experiment, **{"dataset.horizontal_flip": True}))
    prepare_latents(dying(data, tmp_path))
    at_death = {name: tuple(stat) for name, stat in json.loads((tmp_path / "mark").read_text()).items()}
    standing = {split: shards_in(data.cache(split)) for split in SPLITS}
    assert at_death and at_death.items() <= standing["train"].items()
    assert "shard_0004.hdf5" not in at_death
    for split in SPLITS:
        latents = data.latents(split)
        assert latents.names == data.encoded_frames(split).names
        for i in range(len(latents)):
            assert np.array_equal(latents.clip(i), expected(data, split, i))
    loads = [pid for pid in (tmp_path / "loads").read_text().split() if int(pid) != os.getpid()]
    assert len(loads) == len(set(loads)) <= 3  # two workers, and the one in place of the dead; 13 shards
    progress = capfd.readouterr().err
    assert "encode frames" in progress and "/190 " in progress and "frame/s" in progress

    prepare_latents(data)
    assert {split: shards_in(data.cache(split)) for split in SPLITS} == standing
    assert "encode frames" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_a_shard_that_kills_every_worker_is_named_and_what_is_done_is_kept(two_cpus, data, tmp_path):
    deadly = dying(data, tmp_path, always=True)
    with pytest.raises(ConfigError, match=r"train/shard_0004\.hdf5: 2 workers died encoding it.*the same command"):
        prepare_latents(deadly)
    assert not (data.cache("train") / "index.parquet").exists()
    standing = shards_in(data.cache("train"))
    assert standing and "shard_0004.hdf5" not in standing
    prepare_latents(data)
    assert standing.items() <= shards_in(data.cache("train")).items()
    assert len(data.latents("train")) == 6


def test_what_a_worker_finds_wrong_is_one_line(two_cpus, data):
    path = Path(data.frames("train").path(2))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ConfigError, match=r"shard_0003\.hdf5") as caught:
        prepare_latents(data)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


# ---- a standing cache, for which no Ray is needed


def test_a_standing_cache_is_compared_with_the_frames(own_data):
    prepare_latents(own_data)
    frames, folder = own_data.frames("val"), own_data.cache("val")
    torch.manual_seed(1)
    other = frame_encoder(build_autoencoder(own_data.experiment.autoencoder))
    encode_shard(frames, 0, folder, other, 16, own_data.cache_key("val"))
    finish(frames, folder, own_data.cache_key("val"))
    message = r"val/shard_0001\.hdf5: clip .* cached latents differ from the frame encoded again"
    with pytest.raises(ConfigError, match=message):
        prepare_latents(own_data)


def test_a_cache_of_another_autoencoder_is_refused(own_data):
    before = own_data.cache("train").parent
    torch.manual_seed(1)
    settings = own_data.experiment.autoencoder
    checkpoint.save_autoencoder(own_data.workspace.autoencoder, build_autoencoder(settings), settings)
    again = ExperimentData(own_data.experiment, own_data.workspace)
    before.rename(again.cache("train").parent)
    with pytest.raises(ValueError, match=r"train: has the key .*another autoencoder or dataset"):
        prepare_latents(again)


def test_a_cache_of_other_frames_is_refused(own_data):
    frames = own_data.frames("train")
    content = [frames.clip(i) for i in range(len(frames))]
    shutil.rmtree(frames.folder)
    with ShardWriter(frames.folder, key=frames.key) as writer:
        for name, clip in zip(frames.names, content, strict=True):
            writer.add(name, clip[::-1])
    with pytest.raises(ValueError, match=r"train: has the key .*another autoencoder or dataset"):
        prepare_latents(own_data)
