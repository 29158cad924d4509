"""The clips of a dataset as far as they are known before one is read, and whether they fit the config."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raypipe.config import ConfigError, Experiment
from raypipe.data.shards import open_shards
from raypipe.data.shards.index import INDEX
from raypipe.data.shards.storage import Folder
from raypipe.data.splits import SPLITS, Split
from raypipe.workspace.dataset import splits_of
from raypipe.workspace.layout import Workspace


@dataclass(frozen=True)
class Clips:
    """The clips of a split. lengths: [clips], frames of each. size: height and width. made: whether its shards are."""

    lengths: NDArray[np.int64]
    size: tuple[int, int]
    made: bool = True


def clips_of(workspace: Workspace, experiment: Experiment) -> dict[Split, Clips]:
    """The clips of each split; those of a built-in dataset are known before it is simulated."""
    root, demo, size = workspace.dataset(experiment), experiment.demo, experiment.dataset.image_size
    if not experiment.dataset.simulated:
        return {split: _read(root / split) for split in splits_of(root)}
    assert isinstance(root, Path)
    counts = zip(SPLITS, (demo.train_clips, demo.val_clips, demo.test_clips), strict=True)
    return {
        split: _read(root / split)
        if (root / split / INDEX).is_file()
        else Clips(np.full(count, demo.clip_frames), (size, size), made=False)
        for split, count in counts
    }


def _read(folder: Folder) -> Clips:
    shards = open_shards(folder)
    height, width = shards.frame_shape[:2]
    return Clips(np.asarray(shards.lengths), (height, width))


def check_clips(experiment: Experiment, root: Folder, clips: Mapping[Split, Clips]) -> None:
    """Raise ConfigError if frames do not have dataset.image_size, or if all clips of a split are too short.

    root: folder of the dataset, for messages.
    """
    height, width = clips["train"].size
    if (height, width) != (experiment.dataset.image_size,) * 2:
        raise ConfigError(
            f"dataset.image_size: must be {height}, the size of the frames in {root}, "
            f"not {experiment.dataset.image_size}"
        )
    stride = experiment.dataset.frame_stride
    for split, found in clips.items():
        frames = window_frames(experiment, split)
        span, longest = (frames - 1) * stride + 1, int(found.lengths.max())
        if longest < span:
            field = "model.num_input_frames" if split == "train" else "evaluation.horizon"
            raise ConfigError(
                f"{field}: a window of {frames} frames at stride {stride} spans {span} frames, but the longest clip of "
                f"{split} has {longest}; lower {field} or dataset.frame_stride, or convert longer clips"
            )


def scored_windows(experiment: Experiment, clips: Mapping[Split, Clips]) -> int:
    """Number of validation windows that are scored: evaluation.windows, or all if there are fewer."""
    span = (window_frames(experiment, "val") - 1) * experiment.dataset.frame_stride + 1
    return min(experiment.evaluation.windows, int(np.maximum(0, clips["val"].lengths - span + 1).sum()))


def window_frames(experiment: Experiment, split: Split) -> int:
    """Frames of the windows that a split must have: for training one frame is predicted, else the horizon."""
    return experiment.model.num_input_frames + (1 if split == "train" else experiment.evaluation.horizon)
