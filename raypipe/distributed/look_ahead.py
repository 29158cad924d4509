"""What `prepare` would do for an experiment, found out without writing to its folder."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from raypipe import checkpoint
from raypipe.checkpoint.folder import CONFIG, MODEL
from raypipe.checkpoint.reference import take_autoencoder
from raypipe.common.errors import UserError
from raypipe.config import ConfigError, Experiment
from raypipe.data.shards.index import INDEX
from raypipe.data.simulated import clip_maker
from raypipe.data.splits import Split
from raypipe.distributed.capacity import check_nodes
from raypipe.distributed.prepare import check_same_dataset, trained_elsewhere
from raypipe.models.autoencoder import build_autoencoder
from raypipe.workspace.clips import Clips, check_clips, clips_of
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

TIMED_CLIPS = 2
"""Number of simulated clips that tell how long the others take."""


@dataclass(frozen=True)
class Preparation:
    """What is there, and what is left to make. clips: of each split.

    autoencoder: files of its model folder, by name, untrained if it `trains`. parameters: their number. latent:
    [C, h, w]. simulated: number of clips to simulate, in `simulating` seconds. frames: number of frames to encode.
    """

    clips: Mapping[Split, Clips]
    autoencoder: Mapping[str, bytes]
    parameters: int
    latent: tuple[int, int, int]
    trains: bool
    simulated: int
    simulating: float
    frames: int

    @property
    def simulated_bytes(self) -> int:
        """Bytes of the clips to simulate: frames are stored as they are."""
        return sum(3 * int(c.lengths.sum()) * c.size[0] * c.size[1] for c in self.clips.values() if not c.made)

    @property
    def latent_bytes(self) -> int:
        """Bytes of the latents to write, in float16."""
        return 2 * self.frames * int(np.prod(self.latent))


def look_ahead(experiment: Experiment, workspace: Workspace) -> Preparation:
    """What `prepare` would do. Raises what it would raise for a dataset or an autoencoder that does not fit."""
    check_nodes(workspace)
    clips = clips_of(workspace, experiment)
    check_clips(experiment, workspace.dataset(experiment), clips)
    data = ExperimentData(experiment, workspace)
    made = all(each.made for each in clips.values())
    if made and (workspace.folder / "manifest.json").is_file():
        check_same_dataset(data)
    files, trains = _autoencoder(data, made)
    with TemporaryDirectory(prefix="raypipe-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        autoencoder = checkpoint.load_autoencoder(folder)
    size = experiment.dataset.image_size
    with torch.no_grad():
        channels, height, width = autoencoder.encode(torch.zeros(1, 3, size, size))[0].shape
    simulated = sum(len(each.lengths) for each in clips.values() if not each.made)
    return Preparation(
        clips,
        files,
        sum(parameter.numel() for parameter in autoencoder.parameters()),
        (channels, height, width),
        trains,
        simulated,
        simulated * _seconds_a_clip(experiment) if simulated else 0.0,
        _frames_left(data, clips),
    )


def _autoencoder(data: ExperimentData, made: bool) -> tuple[Mapping[str, bytes], bool]:
    """The files of the model folder of the autoencoder, and whether it is still to be trained."""
    settings, folder = data.experiment.autoencoder, data.workspace.autoencoder
    if (folder / CONFIG).is_file():
        return _files(folder), False
    with TemporaryDirectory(prefix="raypipe-") as scratch:
        taken = Path(scratch) / "autoencoder"
        if settings.path is not None:
            try:
                take_autoencoder(Path(settings.path).expanduser(), taken, data.frames("train") if made else None)
            except UserError as error:
                raise ConfigError(f"autoencoder.path: {error}") from None
            return _files(taken), False
        trained = trained_elsewhere(data) if made else None
        if trained is not None:
            return _files(trained), False
        checkpoint.save_autoencoder(taken, build_autoencoder(settings), settings)
        return _files(taken), True


def _files(folder: Path) -> Mapping[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (CONFIG, MODEL)}


def _frames_left(data: ExperimentData, clips: Mapping[Split, Clips]) -> int:
    """Number of frames whose latents are not cached, with the augmented copies of training clips."""
    settings, trained = data.experiment.dataset, (data.workspace.autoencoder / CONFIG).is_file()
    flip = settings.horizontal_flip and data.experiment.latents.mode == "cache"
    count = 0
    for split, found in clips.items():
        if not (trained and (data.cache(split) / INDEX).is_file()):
            copies = (1 + flip) * (1 + settings.time_reversal) if split == "train" else 1
            count += copies * int(found.lengths.sum())
    return count


def _seconds_a_clip(experiment: Experiment) -> float:
    settings, rng = experiment.dataset, np.random.default_rng(0)
    make_clip = clip_maker(settings.name, "train", experiment.demo, settings.image_size)
    began = time.perf_counter()
    for _ in range(TIMED_CLIPS):
        make_clip(rng)
    return (time.perf_counter() - began) / TIMED_CLIPS
