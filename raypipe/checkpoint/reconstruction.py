"""Check an imported autoencoder on frames of a dataset: PSNR of its reconstructions, and the range of its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raypipe.common.device import choose_device
from raypipe.common.errors import UserError
from raypipe.data.frames import to_float
from raypipe.data.shards import Shards, is_shard, open_shards
from raypipe.data.shards.index import INDEX
from raypipe.data.shards.storage import list_files, to_folder
from raypipe.models.autoencoder import INPUT_RANGE, Autoencoder

NUM_FRAMES = 64
"""Number of training frames that are reconstructed."""
BATCH = 8
RANGES = (INPUT_RANGE, (0.0, 1.0))
"""Ranges of frames on which autoencoders are trained."""
LOW_PSNR = 20.0
"""dB; below it, an autoencoder loses most of what is to be predicted."""


@dataclass(frozen=True)
class Check:
    """psnr: of the reconstructed frames in dB, by the range of the network's input. frames: number of frames."""

    psnr: dict[tuple[float, float], float]
    frames: int

    @property
    def best(self) -> tuple[float, float]:
        """The range with the highest PSNR."""
        return max(self.psnr, key=self.psnr.__getitem__)

    def describe(self) -> str:
        """One line with the PSNR of each range."""
        tried = ", ".join(f"{psnr:.1f} dB with input in {show(of)}" for of, psnr in self.psnr.items())
        chosen = f"; {show(self.best)} is used" if len(self.psnr) > 1 else ""
        return f"PSNR of {self.frames} reconstructed training frames: {tried}{chosen}"

    def warning(self) -> str | None:
        """What to check if the PSNR is low, in one line; None if it is not."""
        psnr = self.psnr[self.best]
        if psnr >= LOW_PSNR:
            return None
        return (
            f"WARNING: the autoencoder reconstructs these frames at {psnr:.1f} dB, below {LOW_PSNR:.0f} dB: check that "
            "it was trained on frames of this kind and size, that the file holds its trained weights (not a first "
            "checkpoint, and not others than --prefix names), the order of the colors (RGB), and for diffusers names "
            "norm_num_groups; or train an autoencoder on the dataset (autoencoder.type)"
        )


def show(bounds: tuple[float, float]) -> str:
    return f"[{bounds[0]:g}, {bounds[1]:g}]"


def open_training_shards(dataset: str) -> Shards:
    """The training shards of a dataset. dataset: folder as `raypipe.convert_to_h5` writes, or its folder `train`.

    Raises UserError if it contains no shards of frames.
    """
    root = to_folder(dataset)
    try:
        names = list_files(root)
        shards = open_shards(root if INDEX in names or any(map(is_shard, names)) else root / "train")
    except UserError as error:
        raise UserError(f"--dataset: {error}") from None
    if shards.dtype != np.uint8 or len(shards.frame_shape) != 3:
        raise UserError(f"--dataset: {dataset}: contains latents, not frames; give the folder that convert_to_h5 wrote")
    return shards


def sample_frames(shards: Shards) -> Tensor:
    """NUM_FRAMES frames evenly spaced over all clips (all frames if there are fewer), float32 [n, 3, H, W]."""
    ends = np.cumsum(shards.lengths)
    if not len(ends) or not ends[-1]:
        raise UserError(f"{shards.folder}: contains no frames to reconstruct; convert videos for train/")
    chosen = np.unique(np.linspace(0, ends[-1] - 1, NUM_FRAMES).round().astype(np.int64))
    clips = np.searchsorted(ends, chosen, side="right")
    frames = [
        shards.frames(int(clip), (chosen[clips == clip] - (ends[clip] - shards.lengths[clip])).tolist())
        for clip in np.unique(clips)
    ]
    return to_float(torch.from_numpy(np.concatenate(frames)))


@torch.no_grad()
def check_reconstruction(
    autoencoder: Autoencoder, shards: Shards, ranges: tuple[tuple[float, float], ...] = RANGES
) -> Check:
    """Reconstruct training frames with each range of the network's input, and set the best on `autoencoder`.

    PSNR is that of the mean squared error over all frames. Raises UserError if the size of the frames does not fit.
    """
    frames = sample_frames(shards)
    device = choose_device()
    training = autoencoder.training
    autoencoder.to(device).eval()
    psnr = {}
    for bounds in ranges:
        autoencoder.input_range = bounds
        errors = [
            (autoencoder.decode(autoencoder.encode(batch.to(device))).float().cpu() - batch).square().double().sum()
            for batch in frames.split(BATCH)
        ]
        mse = float(sum(errors)) / frames.numel()
        psnr[bounds] = 10 * float(np.log10(4 / max(mse, 1e-12))) if mse == mse else float("-inf")
    check = Check(psnr, len(frames))
    autoencoder.input_range = check.best
    autoencoder.to("cpu").train(training)
    return check
