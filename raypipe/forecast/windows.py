"""Fixed windows of held-out clips, which every trial of a search is scored on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raypipe.config import Experiment
from raypipe.data.shards import Shards
from raypipe.data.windows import WindowIndex


@dataclass(frozen=True)
class Forecasts:
    """Windows to forecast: context [n, K, C, h, w], truth [n, H, C, h, w], and where they lie (clip, first frame)."""

    context: Tensor
    truth: Tensor
    clips: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def last(self) -> Tensor:
        """The last known frame [n, C, h, w]: persistence repeats it."""
        return self.context[:, -1]


def choose_windows(lengths: npt.ArrayLike, span: int, count: int, seed: int) -> tuple[list[int], list[int]]:
    """`count` windows of `span` frames: as many clips as there are, each start drawn from the seed.

    Windows of one clip are alike, so a clip gives a second one only when every clip has given one.
    Returns clips and first frames; fewer if there are not as many windows.
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


def forecast_windows(latents: Shards, experiment: Experiment, count: int, seed: int) -> Forecasts:
    """`count` fixed windows of K given and H true latents."""
    given, horizon, stride = (
        experiment.model.num_input_frames,
        experiment.evaluation.horizon,
        experiment.dataset.frame_stride,
    )
    clips, starts = choose_windows(latents.lengths, (given + horizon - 1) * stride + 1, count, seed)
    frames = np.stack([read_window(latents, c, s, given + horizon, stride) for c, s in zip(clips, starts, strict=True)])
    data = torch.from_numpy(frames).float()
    return Forecasts(data[:, :given], data[:, given:], tuple(clips), tuple(starts))


def read_window(shards: Shards, clip: int, start: int, count: int, stride: int) -> np.ndarray:
    """`count` frames of a clip, `stride` apart."""
    return np.asarray(shards.frames(clip, slice(start, start + (count - 1) * stride + 1, stride)))


def climatology(latents: Shards, forecasts: Forecasts, members: int, seed: int) -> Tensor:
    """Random training frames as the ensemble of every window and step, [n, M, H, C, h, w]."""
    rng = np.random.default_rng([seed, members])
    lengths = np.asarray(latents.lengths)
    n, horizon = forecasts.truth.shape[:2]
    clips = rng.choice(len(lengths), size=(n, members), p=lengths / lengths.sum())
    frames = [[read_window(latents, int(c), int(rng.integers(lengths[c])), 1, 1)[0] for c in row] for row in clips]
    drawn = torch.from_numpy(np.asarray(frames)).float()
    return drawn[:, :, None].expand(-1, -1, horizon, -1, -1, -1)
