"""The data of an experiment: its frames, and their latents, which are cached or encoded during training."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raypipe import checkpoint
from raypipe.common.device import choose_device
from raypipe.common.errors import UserError
from raypipe.common.locks import file_lock
from raypipe.common.seeds import step_generator
from raypipe.config import ConfigError, Experiment
from raypipe.data import augment
from raypipe.data.batches import TrainBatch
from raypipe.data.conversion.preprocessing import Preprocessing, check_strides, every, read_preprocessing
from raypipe.data.copies import Copies
from raypipe.data.frames import to_float
from raypipe.data.latents import Encode, open_latents
from raypipe.data.shards import Shards, is_shard, open_shards
from raypipe.data.shards.connection import MissingFolderError
from raypipe.data.shards.index import INDEX
from raypipe.data.shards.storage import Folder, list_files
from raypipe.data.simulated import check_packages, make_simulated
from raypipe.data.splits import SPLITS, Split
from raypipe.models.autoencoder import Autoencoder
from raypipe.workspace.layout import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExperimentData:
    """The data of an experiment. Stores only paths and settings, so it can be sent to other processes."""

    experiment: Experiment
    workspace: Workspace

    @cached_property
    def autoencoder_hash(self) -> str:
        """`checkpoint.autoencoder_hash` of the experiment's autoencoder."""
        return checkpoint.autoencoder_hash(self.workspace.autoencoder)

    @cached_property
    def channels(self) -> int:
        """Number of latent channels, C."""
        return checkpoint.load_autoencoder(self.workspace.autoencoder).latent_channels

    def frames(self, split: Split) -> Shards:
        """Shards of a split, whose clips consist of frames, uint8 [H, W, 3]."""
        return open_shards(self.workspace.dataset(self.experiment) / split)

    def encoded_frames(self, split: Split) -> Shards:
        """The frames whose latents are cached: those of the split, and augmented copies of the training clips."""
        settings, frames = self.experiment.dataset, self.frames(split)
        flip = settings.horizontal_flip and self.experiment.latents.mode == "cache"
        if split != "train" or not (flip or settings.time_reversal):
            return frames
        return Copies(frames, flip=flip, reverse=settings.time_reversal)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of the dataset, see `splits_of`."""
        return splits_of(self.workspace.dataset(self.experiment))

    def cache_key(self, split: Split) -> str:
        """Key of a latent cache: it changes with the autoencoder's weights, the frames and their augmented copies."""
        return f"{self.autoencoder_hash}-{self.encoded_frames(split).content_hash()}"

    def cache(self, split: Split) -> Path:
        """Folder of the latent cache of a split."""
        return self.workspace.latents(self.autoencoder_hash) / split

    def latents(self, split: Split) -> Shards:
        """Shards of the latent cache of a split, whose clips consist of latents [C, h, w]."""
        return open_latents(self.cache(split), self.cache_key(split))

    def training_shards(self) -> Shards:
        """The shards on which components are trained: cached latents, or frames if latents.mode is off."""
        return self.frames("train") if self.experiment.latents.mode == "off" else self.latents("train")

    def encoder(self, seed: int, device: torch.device) -> Callable[[TrainBatch], Tensor] | None:
        """Function that augments and encodes a batch of frames, for latents.mode off; None for latents.mode cache.

        It maps a batch of frames, uint8 [b, T, H, W, 3], to latents [b, T, C, h, w].
        """
        if self.experiment.latents.mode == "cache":
            return None
        autoencoder = checkpoint.load_autoencoder(self.workspace.autoencoder).to(device).requires_grad_(False)
        settings = self.experiment.dataset

        def encode(batch: TrainBatch) -> Tensor:
            frames = to_float(batch.data)
            if settings.horizontal_flip or settings.color_jitter:
                drawn = augment.draw(
                    batch.total, step_generator(seed, batch.step, 2), settings.horizontal_flip, settings.color_jitter
                )
                frames = augment.augment(frames, drawn.part(batch.offset, len(frames)))
            with torch.no_grad():
                latents = autoencoder.encode(frames.flatten(0, 1)).float()
            return latents.view(*frames.shape[:2], *latents.shape[1:])

        return encode


def frame_encoder(autoencoder: Autoencoder, device: torch.device | None = None) -> Encode:
    """Function that encodes frames, uint8 [n, H, W, 3], to latents [n, C, h, w], float32, for the latent cache.

    Does not use autocast: the cache stores float16 (11 significant bits), and bfloat16 has only 8.
    """
    device = device or choose_device()
    autoencoder = autoencoder.to(device).eval()

    @torch.no_grad()
    def encode(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
        tensor = torch.from_numpy(np.ascontiguousarray(frames)).to(device)
        return np.asarray(autoencoder.encode(to_float(tensor)).float().cpu().numpy())

    return encode


def check_dataset(workspace: Workspace, experiment: Experiment) -> None:
    """Raise ConfigError unless train and val have shards, converted with a stride that fits the config's.

    Fast, as it reads no frames. Of a built-in dataset, which is simulated on first use, the package that it needs is
    checked; UserError.
    """
    if experiment.dataset.simulated:
        check_packages(experiment.dataset.name)
    else:
        root = workspace.dataset(experiment)
        _check_splits(root)
        _check_stride(root, experiment.dataset.frame_stride)


def _check_stride(root: Folder, stride: int) -> None:
    """Raise ConfigError if frames are skipped twice by the same stride, in the conversion and in the experiment."""
    made = dataset_preprocessing(root)
    first = 1 if made is None else made.frame_stride
    both = first * stride
    remedy = (
        f"for {every(stride)} set --dataset.frame_stride 1; for {every(both)} convert with --frame-stride {both} and "
        "set --dataset.frame_stride 1"
    )
    check_strides(first, stride, "dataset.frame_stride", remedy)
    if first > 1 and stride > 1:
        logger.info(
            "--frame-stride %d of the conversion x dataset.frame_stride %d: %s of the videos",
            first,
            stride,
            every(both),
        )


def dataset_preprocessing(root: Folder) -> Preprocessing | None:
    """How the frames of a dataset were made from videos; None if its splits do not tell.

    Raises ConfigError if its splits were made in different ways.
    """
    found = {split: made for split in splits_of(root) if (made := read_preprocessing(root / split)) is not None}
    first = next(iter(found), None)
    if first is None:
        return None
    for split, made in found.items():
        if made != found[first]:
            raise ConfigError(
                f"dataset.root: {root / first} was converted to {found[first]}, but {split} to {made}; "
                "convert all splits with the same options"
            )
    return found[first]


def prepare_dataset(workspace: Workspace, experiment: Experiment, progress: Callable[[int, int], None]) -> Folder:
    """The folder of the dataset. A built-in dataset is simulated first if needed.

    progress: called with the numbers of finished and of all clips. Raises ConfigError if a split has no shards.
    """
    root = workspace.dataset(experiment)
    if experiment.dataset.simulated:
        assert isinstance(root, Path)
        root.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(root) + ".lock"):
            name, size = experiment.dataset.name, experiment.dataset.image_size
            make_simulated(root, name, experiment.demo, size, progress)
    _check_splits(root)
    return root


def splits_of(root: Folder) -> tuple[Split, ...]:
    """The splits of a dataset. Training needs train and val; test is needed only by the evaluation, and may be absent.

    Raises UserError if the folder cannot be listed.
    """
    return tuple(split for split in SPLITS if split != "test" or has_shards(root / split))


def has_shards(folder: Folder) -> bool:
    """Whether a folder has shards of either layout. Raises UserError if it cannot be listed."""
    try:
        names = list_files(folder)
    except MissingFolderError:
        return False
    return INDEX in names or any(is_shard(name) for name in names)


def _check_splits(root: Folder) -> None:
    for split in ("train", "val"):
        try:
            names = list_files(root / split)
        except UserError as error:
            raise ConfigError(f"dataset.root: {error}") from None
        if INDEX not in names and not any(is_shard(name) for name in names):
            raise ConfigError(
                f"dataset.root: no shards in {str(root / split)!r}; make them with "
                f"python -m raypipe.convert_to_h5 --data_dir VIDEOS --out_dir {root}"
            )
