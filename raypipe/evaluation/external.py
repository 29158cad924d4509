"""Scores of a model, or of predictions that were made elsewhere, under a written protocol.

Frames are scored as a file holds them, rounded to 8 bits: so a model and its predictions in files score the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raypipe.common.errors import UserError
from raypipe.common.files import sha256
from raypipe.config import Experiment
from raypipe.data.frames import to_float, to_uint8
from raypipe.data.shards import ShardWriter
from raypipe.data.video.fitting import Frames
from raypipe.evaluation.perceptual.scores import Collector, Networks, RealClips
from raypipe.evaluation.predictions import LAYOUT
from raypipe.evaluation.protocol import METRICS
from raypipe.evaluation.rules import Task, stride_of
from raypipe.forecast.predictor import Predictor
from raypipe.metrics.calibration import LEVELS
from raypipe.metrics.pixels import Pixels, WindowScore, pixels_of, score_frames
from raypipe.workspace.manifest import manifest

FRAMES = 2048
"""Frames that a model predicts at once, those of one window at least."""

Scores = dict[str, dict[str, float | None]]
"""By the name of a score: its mean over repeats, and its standard deviation (null for a single one)."""


@dataclass(frozen=True)
class Scored:
    """Scores under a protocol. persistence: those of the last given frame repeated, without perceptual ones.

    members: of all repeats.
    """

    scores: Scores
    persistence: Scores
    members: int
    repeats: int


def score_members(task: Task, frames: Iterable[Frames], networks: Networks | None, done: Callable[[], None]) -> Scored:
    """Score the members of each window, uint8 [M, H, S, S, 3]. done: called after each window.

    Members are divided into the repeats of the protocol, each of which is scored on its own. networks: of the
    perceptual scores; of those, each member is a repeat. Raises UserError if no frame has more than two levels, as
    frames in [0, 1] have that were written as uint8.
    """
    collector, true_clips = None if networks is None else Collector(networks), []
    repeats, count, brightest = 1, 1, 0
    scored: list[list[WindowScore]] = []
    still: list[WindowScore] = []
    for window, members in enumerate(frames):
        count, brightest = len(members), max(brightest, int(members.max()))
        repeats = task.rules.repeats if count == task.members else 1
        given, truth = task.frames(window)
        with _one_thread():
            floats = to_float(torch.from_numpy(members))
            if collector is not None and networks is not None:
                collector.add(floats, truth, given)
                true_clips.append(networks.features(torch.cat([given, truth]), len(given)))
            parts = floats.chunk(repeats)
            scored.append([score_frames(part, truth, given[-1]) for part in parts])
            still.append(score_frames(given[-1][None, None], truth, given[-1]))
        done()
    if brightest <= 1:
        raise UserError("predictions: all values are 0 or 1 of 255; write values x of [0, 1] as round(255 x)")
    ensembles = [pixels_of([window[repeat] for window in scored], bodies=task.bodies) for repeat in range(repeats)]
    persistence = pixels_of(still, bodies=task.bodies)
    scores = _over_repeats(ensembles)
    if collector is not None:
        features = {name: torch.stack([clip[name] for clip in true_clips]).numpy() for name in true_clips[0]}
        scores |= _perceptual(collector.scores(RealClips(features, {})))
    return Scored(scores, _over_repeats([persistence]), count, repeats)


def _perceptual(found: Mapping[str, float]) -> Scores:
    """Perceptual scores by column, with the standard deviation over members beside each."""
    return {
        name: {"mean": _finite(value), "sd": _finite(found.get(f"{name}_sd"))}
        for name, value in found.items()
        if not name.endswith("_sd")
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads of torch take many times as long for the frames of one window, as they wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _over_repeats(ensembles: Sequence[Pixels]) -> Scores:
    values = [_columns(pixels) for pixels in ensembles]
    scores: Scores = {}
    for name, first in values[0].items():
        repeated = [value for one in values if (value := one[name]) is not None]
        if first is not None:
            sd = float(np.std(repeated, ddof=1)) if len(repeated) > 1 else None
            scores[name] = {"mean": _finite(float(np.mean(repeated))), "sd": _finite(sd)}
    return scores


def _columns(pixels: Pixels) -> dict[str, float | None]:
    """Scores of decoded frames by their names in combinations.parquet."""
    return {
        "crps_ratio_pixels": pixels.crps_ratio,
        "energy_ratio_pixels": pixels.energy_ratio,
        "variogram_ratio_pixels": pixels.variogram_ratio,
        "psnr": pixels.psnr,
        "ssim": pixels.ssim,
        "bodies_kept": pixels.bodies_kept[-1] if pixels.bodies_kept else None,
        "reliability_index_pixels": pixels.ranks.reliability_index,
        **{f"coverage_{100 * level:.0f}_pixels": pixels.ranks.coverage(level) for level in LEVELS},
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity, which the PSNR of perfect frames is."""
    return value if value is not None and math.isfinite(value) else None


def check_model(predictor: Predictor, task: Task, model: str) -> None:
    """Raise UserError if a model cannot predict what the protocol asks."""
    made, ruled = predictor.manifest, task.rules.frames
    if made.image_size != ruled.image_size:
        raise UserError(
            f"--model: {model} predicts frames of {made.image_size}x{made.image_size} pixels, but the protocol has "
            f"{ruled.image_size}x{ruled.image_size}; give a model of this size"
        )
    if made.num_input_frames > ruled.given:
        raise UserError(
            f"--model: {model} needs {made.num_input_frames} given frames, but the protocol gives {ruled.given}; give "
            f"a model with model.num_input_frames of at most {ruled.given}"
        )
    mine = stride_of(made.frame_stride, made.preprocessing)
    asked = stride_of(ruled.frame_stride, task.rules.dataset.preprocessing)
    if made.preprocessing is not None and task.rules.dataset.preprocessing is not None and mine != asked:
        raise UserError(f"--model: {model} was trained on {mine} of the videos, but the protocol has {asked}")


def predict(predictor: Predictor, task: Task) -> Iterator[Frames]:
    """The members of each window, uint8 [M, H, S, S, 3], with the noise that the evaluation of a search has there.

    A model without noise has one member.
    """
    members, ruled = task.members if predictor.stochastic else 1, task.rules
    count, batch = len(task.windows), max(1, FRAMES // (members * ruled.frames.predicted))
    for first in range(0, count, batch):
        given = torch.stack([task.frames(i)[0] for i in range(first, min(first + batch, count))])
        made = predictor.predict(given, ruled.frames.predicted, members=members, seed=ruled.seed, first_window=first)
        yield from (to_uint8(one).numpy() for one in made)


def write_predictions(folder: Path, task: Task, frames: Iterable[Frames]) -> None:
    """Write the members of each window as shards, in the layout of `raypipe.evaluation.predictions`."""
    with ShardWriter(folder) as writer:
        for window, members in zip(task.windows, frames, strict=True):
            for number, member in enumerate(members):
                writer.add(f"{window.name}/{number}", member, source=window.clip)


def protocol_for(task: Task) -> dict[str, Any]:
    """The protocol as it holds for this dataset, with the clips and windows by name."""
    return {"metrics": METRICS, "predictions": LAYOUT} | task.text()


def as_json(task: Task, scored: Scored, what: Mapping[str, Any]) -> dict[str, Any]:
    """All that scores.json holds. what: what was scored."""
    ran = manifest(Experiment())
    return {
        **what,
        "members": scored.members,
        "repeats": scored.repeats,
        "scores": scored.scores,
        "persistence": scored.persistence,
        "versions": ran["versions"] | {"commit": ran["commit"]},
        "protocol": protocol_for(task),
    }


def hashes(model: Path) -> dict[str, str]:
    """sha256 of each file of weights in a model's folder."""
    files = sorted(model.rglob("*.safetensors"))
    return {path.relative_to(model).as_posix(): sha256(path) for path in files}
