"""Scores of decoded frames, of one window and over all windows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypipe.metrics import ensemble, frames
from raypipe.metrics.bodies import kept_bodies


@dataclass(frozen=True)
class Pixels:
    """Scores of decoded frames over all windows.

    crps_ratio, energy_ratio: fair CRPS per pixel, and fair energy score of whole frames, over those of persistence.
    psnr (dB) and ssim are those of single members, averaged over all members. bodies_kept: for the demo, the share of
    the bodies that members still show at each predicted frame, [H], see `raypipe.metrics.bodies`; else None.
    """

    crps_ratio: float
    psnr: float
    ssim: float
    energy_ratio: float
    bodies_kept: list[float] | None


@dataclass(frozen=True)
class WindowScore:
    """Scores of one window. crps, energy: of the forecast and of persistence. kept: [H], share of `bodies` bodies."""

    crps: tuple[float, float]
    energy: tuple[float, float]
    psnr: float
    ssim: float
    kept: Tensor
    bodies: int


def score_frames(members: Tensor, truth: Tensor, last: Tensor) -> WindowScore:
    """Score an ensemble of frames [M, H, 3, height, width] against the true ones, [H, 3, height, width].

    The ensemble may also be [M, 1, 3, height, width], the same for all H frames. last: the last given frame,
    [3, height, width]. All values are in [-1, 1].
    """
    by_frame = members.transpose(0, 1).expand(len(truth), -1, -1, -1, -1)
    still = last.expand(len(truth), 1, -1, -1, -1)
    share, bodies = kept_bodies(members, last)
    return WindowScore(
        (ensemble.fair_crps(members[None], truth[None]).mean().item(), (truth - last).abs().mean().item()),
        tuple(ensemble.energy_score(made, truth).mean().item() for made in (by_frame, still)),  # type: ignore[arg-type]
        frames.psnr(members, truth).mean().item(),
        frames.ssim(members, truth).mean().item(),
        share.mean(0).expand(len(truth)),
        bodies,
    )


def pixels_of(scores: Sequence[WindowScore], *, bodies: bool) -> Pixels:
    """The scores over all windows. bodies: whether the frames are those of the demo, so that bodies can be found."""
    crps, energy = (np.mean([getattr(s, name) for s in scores], 0) for name in ("crps", "energy"))
    kept = torch.stack([s.bodies * s.kept for s in scores]).sum(0) / max(1, sum(s.bodies for s in scores))
    return Pixels(
        float(crps[0] / crps[1]),
        float(np.mean([s.psnr for s in scores])),
        float(np.mean([s.ssim for s in scores])),
        float(energy[0] / energy[1]),
        kept.tolist() if bodies else None,
    )
