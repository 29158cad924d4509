"""Random data of the shape that an experiment will have, on which a few steps of its trainings can be measured."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from raypipe import config
from raypipe.config import Experiment
from raypipe.data.latents import cache_latents, finish
from raypipe.data.shards.writer import ShardWriter
from raypipe.data.splits import SPLITS
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

MORE_FRAMES = 4
"""Frames of a clip beyond those of a window of given and predicted frames."""
SMALL = 16
"""Side of frames that only their latents stand for."""


@contextmanager
def stand_in(
    experiment: Experiment, autoencoder: Mapping[str, bytes], latent: tuple[int, ...], clips: int, frames: int = 0
) -> Iterator[ExperimentData]:
    """The data of an experiment in a temporary folder, which is deleted in the end; its config differs by the paths.

    autoencoder: the files of its model folder, by name. latent: [C, h, w]. clips: number of clips of each split.
    frames: of each clip; 0: as many as a window of given and predicted frames has, and a few more. With
    `latents.mode` cache, only the latents have their shape; the frames, which nobody reads, are small.
    """
    span = (experiment.model.num_input_frames + experiment.evaluation.horizon - 1) * experiment.dataset.frame_stride + 1
    rng = np.random.default_rng(0)
    with TemporaryDirectory(prefix="raypipe-") as folder:
        root = Path(folder) / "shards"
        read = frames > 0 or experiment.latents.mode == "off"
        shown = {"dataset.root": str(root), "dataset.horizontal_flip": False, "dataset.time_reversal": False}
        data = ExperimentData(config.replace(experiment, **shown), Workspace(Path(folder), "stand-in"))
        data.workspace.autoencoder.mkdir(parents=True)
        for name, content in autoencoder.items():
            (data.workspace.autoencoder / name).write_bytes(content)
        size = experiment.dataset.image_size if read else SMALL
        for split in SPLITS:
            with ShardWriter(root / split) as writer:
                for i in range(clips):
                    shape = (frames or span + MORE_FRAMES, size, size, 3)
                    writer.add(f"{split}-{i}", rng.integers(0, 256, shape, np.uint8))

        def encode(batch: NDArray[np.uint8]) -> NDArray[np.float32]:
            return rng.standard_normal((len(batch), *latent), np.float32)

        for split in () if frames else SPLITS:
            cache_latents(data.frames(split), data.cache(split), encode, 64, data.cache_key(split))
            finish(data.frames(split), data.cache(split), data.cache_key(split))
        yield data
