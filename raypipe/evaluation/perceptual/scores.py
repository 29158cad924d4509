"""Perceptual scores of a combination: what networks make of its frames and clips, compared with the true ones.

Distances of frames are means over members, windows and predicted frames. Distances of clips compare the N predicted
clips of one member with the N true ones; each member is a repeat, and their mean and standard deviation are reported.
On EfficientNet-Lite0 only the first member counts, since each costs as much as all other scores in pixels together.
Given frames are part of the clips of FVD and JEDi, as in published tables, but not of those of EfficientNet-Lite0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypipe.common.device import choose_device
from raypipe.common.errors import UserError
from raypipe.config import Evaluation
from raypipe.data.frames import to_float
from raypipe.data.splits import Split
from raypipe.evaluation.perceptual import efflite0
from raypipe.evaluation.perceptual.weights import load_network, weights_files
from raypipe.forecast.windows import Forecasts, read_window, window_starts
from raypipe.metrics.frechet import Array, frechet_distance, kernel_distance
from raypipe.workspace.dataset import ExperimentData

DISTANCES: Mapping[str, tuple[str, Callable[[Array, Array], float]]] = {
    "efflite0": ("efflite0_frechet", frechet_distance),
    "i3d": ("fvd", frechet_distance),
    "vjepa": ("jedi", lambda x, y: 100 * kernel_distance(x, y)),
}
"""By network of clips: the column of combinations.parquet, and the distance of the features of two sets of clips."""
Features = Mapping[str, Array]
"""By network: features of N clips, [N, D]."""


@dataclass(frozen=True)
class RealClips:
    """Features of the true clips of the scored windows, and of as many windows of training clips, see `Networks`.

    The distance of the two is what a perfect forecast of other clips would get: the floor, which falls with N. others
    is empty if there are not as many windows of training clips.
    """

    scored: Features
    others: Features


class Networks:
    """The networks whose weights are given or installed."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._device = choose_device()
        file, given = efflite0.weights_file(), weights_files(evaluation)
        self._efflite0 = None if file is None else efflite0.load_efflite0(file).to(self._device)
        self._given = {kind: load_network(kind, path).to(self._device) for kind, path in given.items()}

    @classmethod
    def available(cls, evaluation: Evaluation) -> "Networks | None":
        """The networks; None if there are no weights for any."""
        return cls(evaluation) if efflite0.weights_file() is not None or weights_files(evaluation) else None

    def features(self, clip: Tensor, given: int) -> dict[str, Tensor]:
        """Features of a clip, [D], by network. clip: [T, 3, h, w] in [-1, 1]; the first `given` frames were given."""
        found = {} if self._efflite0 is None else {"efflite0": efflite0.clip_features(self._layers(clip[given:]))}
        return found | self._given_features(clip)

    @torch.no_grad()
    def window(self, members: Tensor, true: Tensor, given: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
        """Distances of frames, by column, and features of clips, [M, D], by network, of the forecast of one window.

        members: [M, H, 3, h, w]; true: [H, 3, h, w]; given: [K, 3, h, w].
        """
        distances, features = {}, {}
        if self._efflite0 is not None:
            layers = self._layers(torch.cat([members[0], true]))
            made, wanted = ([part[i] for part in (layer.chunk(2) for layer in layers)] for i in range(2))
            distances["efflite0_distance"] = efflite0.distance(made, wanted).mean().item()
            features["efflite0"] = efflite0.clip_features(made)[None]
        if "lpips" in self._given:
            pairs = [(made.to(self._device), true.to(self._device)) for made in members]
            distances["lpips"] = torch.stack([self._given["lpips"](*pair).mean() for pair in pairs]).mean().item()
        clips = [self._given_features(torch.cat([given, made])) for made in members]
        return distances, features | {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}

    @torch.no_grad()
    def _layers(self, frames: Tensor) -> list[Tensor]:
        assert self._efflite0 is not None
        packed = frames.to(self._device, memory_format=torch.channels_last)  # a quarter faster on a CPU
        return [layer.cpu() for layer in self._efflite0(packed)]

    @torch.no_grad()
    def _given_features(self, clip: Tensor) -> dict[str, Tensor]:
        networks = {kind: network for kind, network in self._given.items() if kind in DISTANCES}
        return {kind: network(clip[None].to(self._device))[0].cpu() for kind, network in networks.items()}


def read_real_clips(data: ExperimentData, split: Split, count: int) -> RealClips:
    """The features of the true clips of the `count` windows that are scored on a split."""
    networks = Networks(data.experiment.evaluation)
    scored, others = _windows(data, split, count), _windows(data, "train", count)
    enough = len(others) >= len(scored)
    return RealClips(
        _features(networks, data, split, scored),
        _features(networks, data, "train", others[: len(scored)]) if enough else {},
    )


def _windows(data: ExperimentData, split: Split, count: int) -> list[tuple[int, int]]:
    """Clip and first frame of each window; none if no clip is long enough."""
    experiment = data.experiment
    try:
        found = window_starts(data.frames(split).lengths, experiment, count, experiment.evaluation.seed)
    except UserError:
        return []
    return list(zip(*found, strict=True))


def _features(networks: Networks, data: ExperimentData, split: Split, windows: Sequence[tuple[int, int]]) -> Features:
    given = data.experiment.model.num_input_frames
    found = [networks.features(_true_clip(data, split, clip, start), given) for clip, start in windows]
    return {name: torch.stack([clip[name] for clip in found]).numpy() for name in found[0]}


def _true_clip(data: ExperimentData, split: Split, clip: int, start: int) -> Tensor:
    """The given and true frames of a window, [K + H, 3, h, w] in [-1, 1]."""
    experiment = data.experiment
    count, stride = experiment.model.num_input_frames + experiment.evaluation.horizon, experiment.dataset.frame_stride
    return to_float(torch.from_numpy(read_window(data.frames(split), clip, start, count, stride)))


class Collector:
    """Collects what networks make of forecasts, window by window."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._distances: list[dict[str, float]] = []
        self._features: list[dict[str, Tensor]] = []

    def add(self, members: Tensor, true: Tensor, given: Tensor) -> None:
        """Add the forecast of the next window; see `Networks.window`."""
        distances, features = self._networks.window(members, true, given)
        self._distances.append(distances)
        self._features.append(features)

    def scores(self, real: RealClips) -> dict[str, float]:
        """The scores by column of combinations.parquet. *_sd: over members; *_floor: of true clips, see `RealClips`.

        real: of the windows that were added, in their order.
        """
        found = {name: float(np.mean([window[name] for window in self._distances])) for name in self._distances[0]}
        for name in self._features[0]:
            column, distance = DISTANCES[name]
            made, true = torch.stack([window[name] for window in self._features]).numpy(), real.scored[name]
            repeats = [distance(made[:, member], true) for member in range(made.shape[1])]
            found[column] = float(np.mean(repeats))
            if name in real.others:
                found[f"{column}_floor"] = distance(real.others[name], true)
            if len(repeats) > 1:
                found[f"{column}_sd"] = float(np.std(repeats, ddof=1))
        return found


class PerceptualScorer:
    """Collects what the networks make of the forecasts of one combination."""

    def __init__(self, data: ExperimentData, split: Split, windows: Forecasts, real: RealClips) -> None:
        self._data, self._split, self._windows, self._real = data, split, windows, real
        self._collector = Collector(Networks(data.experiment.evaluation))

    def add(self, window: int, members: Tensor) -> None:
        """Add the members of the next window, [M, H, 3, h, w] in [-1, 1], or [M, 1, 3, h, w] if all H are the same."""
        experiment = self._data.experiment
        clip = _true_clip(self._data, self._split, self._windows.clips[window], self._windows.starts[window])
        given, true = clip.tensor_split([experiment.model.num_input_frames])
        some = members[: experiment.evaluation.test_members].expand(-1, len(true), -1, -1, -1)
        self._collector.add(some, true, given)

    def scores(self) -> dict[str, float]:
        """The scores by column of combinations.parquet, see `Collector.scores`."""
        return self._collector.scores(self._real)
