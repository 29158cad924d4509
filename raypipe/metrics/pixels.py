"""Scores of decoded frames, of one window and over all windows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypipe.metrics import ensemble, frames
from raypipe.metrics.bodies import kept_bodies
from raypipe.metrics.calibration import RankHistogram, rank_counts
from raypipe.metrics.fields import ScoreAndReference, beside_persistence, ratio
from raypipe.metrics.variogram import variogram_score


@dataclass(frozen=True)
class Pixels:
    """Scores of decoded frames over all windows.

    crps_ratio, energy_ratio, variogram_ratio: fair CRPS per pixel, and fair energy and variogram score of whole frames,
    over those of persistence. ranks: of the true pixels among those of the members. psnr (dB) and ssim are those of
    single members, averaged over all members. bodies_kept: for the demo, the share of the bodies that members still
    show at each predicted frame, [H], see `raypipe.metrics.bodies`; else None.
    """

    crps_ratio: float
    psnr: float
    ssim: float
    energy_ratio: float
    variogram_ratio: float
    ranks: RankHistogram
    bodies_kept: list[float] | None


@dataclass(frozen=True)
class FrameErrors:
    """Fair CRPS per pixel, and fair energy score of whole frames, of one window: of the forecast, of persistence."""

    crps: ScoreAndReference
    energy: ScoreAndReference


@dataclass(frozen=True)
class WindowScore:
    """Scores of one window. ranks: see `rank_counts`. kept: [H], share of `bodies` bodies."""

    errors: FrameErrors
    variogram: ScoreAndReference
    ranks: Tensor
    psnr: float
    ssim: float
    kept: Tensor
    bodies: int


def frame_errors(members: Tensor, truth: Tensor, last: Tensor) -> FrameErrors:
    """The errors of an ensemble of frames; see `score_frames` for the arguments."""
    crps = ensemble.fair_crps(members[None], truth[None]).mean().item()
    energy = beside_persistence(ensemble.energy_score, members, truth, last)
    return FrameErrors((crps, (truth - last).abs().mean().item()), energy)


def best_of(windows: Sequence[Mapping[str, FrameErrors]]) -> str:
    """The name with the lowest product of CRPS and energy score, both means over all windows.

    So neither a lower error per pixel nor a better fit of whole frames is bought with a greater loss of the other,
    relative to its size. windows: errors by name, for each window. If no error is finite, the first name.
    """
    mean = {name: np.mean([(w[name].crps[0], w[name].energy[0]) for w in windows], axis=0) for name in windows[0]}
    finite = {name: float(errors.prod()) for name, errors in mean.items() if np.isfinite(errors).all()}
    return min(finite, key=finite.__getitem__) if finite else next(iter(mean))


def score_frames(members: Tensor, truth: Tensor, last: Tensor) -> WindowScore:
    """Score an ensemble of frames [M, H, 3, height, width] against the true ones, [H, 3, height, width].

    The ensemble may also be [M, 1, 3, height, width], the same for all H frames. last: the last given frame,
    [3, height, width]. All values are in [-1, 1].
    """
    share, bodies = kept_bodies(members, last)
    return WindowScore(
        frame_errors(members, truth, last),
        beside_persistence(variogram_score, members, truth, last),
        rank_counts(members[None], truth[None]),
        frames.psnr(members, truth).mean().item(),
        frames.ssim(members, truth).mean().item(),
        share.mean(0).expand(len(truth)),
        bodies,
    )


def pixels_of(scores: Sequence[WindowScore], *, bodies: bool) -> Pixels:
    """The scores over all windows. bodies: whether the frames are those of the demo, so that bodies can be found."""
    kept = torch.stack([s.bodies * s.kept for s in scores]).sum(0) / max(1, sum(s.bodies for s in scores))
    return Pixels(
        ratio([s.errors.crps for s in scores]),
        float(np.mean([s.psnr for s in scores])),
        float(np.mean([s.ssim for s in scores])),
        ratio([s.errors.energy for s in scores]),
        ratio([s.variogram for s in scores]),
        RankHistogram.of([s.ranks for s in scores]),
        kept.tolist() if bodies else None,
    )
