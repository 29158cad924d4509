"""The fixed windows on which all trials and combinations are scored."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raypipe import config
from raypipe.config import Experiment
from raypipe.data.shards import Shards
from raypipe.data.splits import Split
from raypipe.data.windows import WindowIndex
from raypipe.workspace.dataset import ExperimentData


@dataclass(frozen=True)
class Forecasts:
    """Windows to forecast.

    context: [n, K, C, h, w], given latents. truth: [n, H, C, h, w], latents to predict, where H is the horizon.
    clips, starts: clip and first frame of each window.
    """

    context: Tensor
    truth: Tensor
    clips: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def last(self) -> Tensor:
        """The last given frame, [n, C, h, w], which the persistence baseline repeats."""
        return self.context[:, -1]


def choose_windows(lengths: npt.ArrayLike, span: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Choose `count` random windows of `span` frames, spread evenly over the clips.

    No clip is used again before every other clip long enough has been used as often, since windows of one clip are
    similar. lengths: [clips], frames of each clip. Returns clip and first frame of each window, all windows if there
    are fewer than `count`. Raises ValueError if no clip is long enough.
    """
    lengths = np.asarray(lengths)
    index = WindowIndex(lengths, span)
    rng = np.random.default_rng([seed, span])
    taken: list[tuple[int, int]] = []
    starts = {int(c): list(rng.permutation(max(0, int(n) - index.span + 1))) for c, n in enumerate(lengths)}
    while len(taken) < min(count, len(index)):
        for clip in rng.permutation(len(lengths)):
            if starts[int(clip)] and len(taken) < count:
                taken.append((int(clip), int(starts[int(clip)].pop())))
    taken.sort()
    return [clip for clip, _ in taken], [start for _, start in taken]


def window_starts(lengths: npt.ArrayLike, experiment: Experiment, count: int, seed: int) -> tuple[list[int], list[int]]:
    """Clip and first frame of each window of given and predicted frames, see `choose_windows`."""
    frames = experiment.model.num_input_frames + experiment.evaluation.horizon
    return choose_windows(lengths, (frames - 1) * experiment.dataset.frame_stride + 1, count, seed)


def forecast_windows(latents: Shards, experiment: Experiment, count: int, seed: int) -> Forecasts:
    """Choose `count` windows with `choose_windows`, and read their given and true latents."""
    given, horizon, stride = (
        experiment.model.num_input_frames,
        experiment.evaluation.horizon,
        experiment.dataset.frame_stride,
    )
    clips, starts = window_starts(latents.lengths, experiment, count, seed)
    frames = np.stack([read_window(latents, c, s, given + horizon, stride) for c, s in zip(clips, starts, strict=True)])
    data = torch.from_numpy(frames).float()
    return Forecasts(data[:, :given], data[:, given:], tuple(clips), tuple(starts))


def training_windows(latents: Shards, experiment: Experiment, count: int, seed: int) -> Forecasts:
    """`forecast_windows` of training clips, which may be too short for the horizon: then H is smaller."""
    given, stride = experiment.model.num_input_frames, experiment.dataset.frame_stride
    longest = (int(latents.lengths.max()) - 1) // stride + 1 - given
    horizon = min(experiment.evaluation.horizon, longest)
    return forecast_windows(latents, config.replace(experiment, **{"evaluation.horizon": horizon}), count, seed)


def read_window(shards: Shards, clip: int, start: int, count: int, stride: int) -> np.ndarray:
    """Read `count` frames of a clip, `stride` apart, from frame `start`: [count, ...]."""
    return np.asarray(shards.frames(clip, slice(start, start + (count - 1) * stride + 1, stride)))


def climatology(latents: Shards, forecasts: Forecasts, members: int, seed: int) -> Tensor:
    """Ensemble of the climatology baseline, [n, M, H, C, h, w]: each member repeats one random training frame."""
    rng = np.random.default_rng([seed, members])
    lengths = np.asarray(latents.lengths)
    n, horizon = forecasts.truth.shape[:2]
    clips = rng.choice(len(lengths), size=(n, members), p=lengths / lengths.sum())
    frames = [[read_window(latents, int(c), int(rng.integers(lengths[c])), 1, 1)[0] for c in row] for row in clips]
    drawn = torch.from_numpy(np.asarray(frames)).float()
    return drawn[:, :, None].expand(-1, -1, horizon, -1, -1, -1)


def true_frames(data: ExperimentData, split: Split, windows: Forecasts) -> tuple[Tensor, Tensor]:
    """True frames of windows, uint8 [n, H, height, width, 3], and the last given frames, [n, height, width, 3]."""
    experiment, shards = data.experiment, data.encoded_frames(split)
    given, stride = experiment.model.num_input_frames, experiment.dataset.frame_stride
    horizon = windows.truth.shape[1]
    read = [
        read_window(shards, clip, start + (given - 1) * stride, horizon + 1, stride)
        for clip, start in zip(windows.clips, windows.starts, strict=True)
    ]
    stacked = torch.from_numpy(np.stack(read))
    return stacked[:, 1:], stacked[:, 0]
