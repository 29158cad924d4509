"""What an autoencoder allows: the score of perfect latents in pixels, beside that of repeating the last frame.

No search of forecasts can make up for an autoencoder that loses more of a frame than the scene moves.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from pydantic import TypeAdapter
from torch import Tensor

from raypipe import checkpoint
from raypipe.common.device import choose_device
from raypipe.common.files import write_json
from raypipe.data.frames import to_float
from raypipe.data.splits import Split
from raypipe.forecast.decoding import PLAIN, LastFrame, decode, decodings, frames_of
from raypipe.forecast.windows import forecast_windows, training_windows, true_frames
from raypipe.metrics.pixels import FrameErrors, best_of, frame_errors, pixels_of, score_frames
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

TRAIN_WINDOWS = 16
"""Number of training windows whose PSNR tells whether the autoencoder fits only what it was trained on."""
OVERFIT = 3.0
"""Difference in dB between the PSNR on training and on validation frames from which the autoencoder has overfitted."""


@dataclass(frozen=True)
class Reached:
    """Scores of frames on windows: CRPS per pixel over that of persistence, PSNR of single frames in dB, and SSIM."""

    crps_ratio_pixels: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Ceiling:
    """What perfect latents of validation windows score. autoencoder: its hash, for which this holds.

    persistence: the last frame repeated. perfect: by decoding, see `raypipe.forecast.decoding`. best: the best one of
    the decodings that the config allows. train_psnr: of reconstructed training frames, in dB.
    """

    autoencoder: str
    windows: int
    persistence: Reached
    perfect: Mapping[str, Reached]
    best: str
    train_psnr: float

    @property
    def loses(self) -> bool:
        """Whether even perfect latents are no better than repeating the last frame."""
        return not self.perfect[self.best].crps_ratio_pixels < 1


def measure_ceiling(data: ExperimentData) -> Ceiling:
    """The ceiling of an experiment. It is measured once and kept in `ceiling.json` in the experiment's folder."""
    kept = read_ceiling(data.workspace)
    if kept is not None and kept.autoencoder == data.autoencoder_hash:
        return kept
    evaluation = data.experiment.evaluation
    made = _Reconstructed.read(data, "val", evaluation.windows)
    allowed = decodings(evaluation.decoding)
    best = best_of([{name: made.errors(i, name) for name in allowed} for i in range(len(made.truth))])
    ceiling = Ceiling(
        autoencoder=data.autoencoder_hash,
        windows=len(made.truth),
        persistence=made.reached(None),
        perfect={name: made.reached(name) for name in dict.fromkeys((PLAIN, "anchored", best))},
        best=best,
        train_psnr=_Reconstructed.read(data, "train", TRAIN_WINDOWS).reached(PLAIN).psnr,
    )
    write_json(data.workspace.ceiling, asdict(ceiling))
    return ceiling


def read_ceiling(workspace: Workspace) -> Ceiling | None:
    """The ceiling that was measured for an experiment; None if there is none, or one that cannot be read."""
    try:
        return TypeAdapter(Ceiling).validate_json(workspace.ceiling.read_bytes())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class _Reconstructed:
    """True frames of windows and what the autoencoder makes of them: [n, H, 3, h, w], and [n, 3, h, w] for `last`."""

    truth: Tensor
    decoded: Tensor
    last: LastFrame

    @classmethod
    @torch.no_grad()
    def read(cls, data: ExperimentData, split: Split, count: int) -> "_Reconstructed":
        read = training_windows if split == "train" else forecast_windows
        windows = read(data.latents(split), data.experiment, count, data.experiment.evaluation.seed)
        truth, last = (to_float(frames) for frames in true_frames(data, split, windows))
        autoencoder = checkpoint.load_autoencoder(data.workspace.autoencoder).to(choose_device())
        return cls(truth, decode(autoencoder, windows.truth), LastFrame(last, decode(autoencoder, windows.last)))

    def errors(self, window: int, decoding: str) -> FrameErrors:
        return frame_errors(self._frames(window, decoding), self.truth[window], self.last.frame[window])

    def reached(self, decoding: str | None) -> Reached:
        """Scores of all windows. decoding: None: the last frame repeated."""
        scored = [
            score_frames(self._frames(i, decoding), true, self.last.frame[i]) for i, true in enumerate(self.truth)
        ]
        pixels = pixels_of(scored, bodies=False)
        return Reached(pixels.crps_ratio, pixels.psnr, pixels.ssim)

    def _frames(self, window: int, decoding: str | None) -> Tensor:
        last = LastFrame(self.last.frame[window], self.last.decoded[window])
        if decoding is None:
            return last.frame[None, None]
        return frames_of(decoding, self.decoded[window][None], last)


def ceiling_rows(ceiling: Ceiling) -> list[tuple[str, float, float, float]]:
    """(name, CRPS ratio in pixels, PSNR, SSIM) of the last frame repeated and of perfect latents."""
    named = {"last frame repeated": ceiling.persistence}
    named |= {f"perfect latents, {decoding}": reached for decoding, reached in ceiling.perfect.items()}
    return [(name, r.crps_ratio_pixels, r.psnr, r.ssim) for name, r in named.items()]


def ceiling_warning(ceiling: Ceiling) -> str | None:
    """If even perfect latents lose to the last frame: a line that says so and what helps; else None."""
    if not ceiling.loses:
        return None
    fitted, held_out = ceiling.train_psnr, ceiling.perfect[PLAIN].psnr
    best = ceiling.perfect[ceiling.best].crps_ratio_pixels
    lost = f"even perfect latents are worse than repeating the last frame (CRPS ratio in pixels {best:.3f})"
    if fitted > held_out + OVERFIT:
        return (
            f"{lost}: the autoencoder fits its training frames ({fitted:.1f} dB) but not those of validation "
            f"({held_out:.1f} dB); what helps, cheapest first: a published autoencoder (--autoencoder.path), "
            "more videos"
        )
    return (
        f"{lost}: the autoencoder loses more than the scene moves; what helps, cheapest first: --autoencoder.steps "
        "twice as many, --autoencoder.channels 8, --autoencoder.width 64, a published autoencoder (--autoencoder.path)"
    )
