"""What an autoencoder allows, measured on the tiny experiment."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import checkpoint, config
from raypipe.data.frames import to_float
from raypipe.data.latents import cache_latents, finish
from raypipe.forecast.ceiling import (
    Ceiling,
    Reached,
    _Reconstructed,
    ceiling_rows,
    ceiling_warning,
    measure_ceiling,
    read_ceiling,
)
from raypipe.forecast.windows import forecast_windows, training_windows, true_frames
from raypipe.workspace.dataset import frame_encoder

STILL = Reached(1.0, 20.0, 0.9)


def ceiling(ratio, psnr=24.0, train_psnr=25.0):
    return Ceiling("a", 8, STILL, {"plain": Reached(2.0, psnr, 0.5), "copied-0.2": Reached(ratio, 21.0, 0.8)},
                   "copied-0.2", train_psnr)  # fmt: skip


def test_an_untrained_autoencoder_loses_to_the_last_frame(own_data):
    found = measure_ceiling(own_data)
    windows = forecast_windows(own_data.latents("val"), own_data.experiment, 6, 0)
    truth, last = (to_float(frames) for frames in true_frames(own_data, "val", windows))
    autoencoder = checkpoint.load_autoencoder(own_data.workspace.autoencoder)
    with torch.no_grad():
        again = autoencoder.decode(windows.truth.flatten(0, 1)).view_as(truth)
    error, still = ((x - truth).abs().mean().item() for x in (again, last[:, None]))
    assert found.perfect["plain"].crps_ratio_pixels == pytest.approx(error / still, rel=1e-4)
    assert found.persistence.crps_ratio_pixels == pytest.approx(1)
    psnr = 10 * torch.log10(4 / (again - truth).square().mean((2, 3, 4))).mean().item()
    assert found.perfect["plain"].psnr == pytest.approx(psnr, rel=1e-4)
    assert found.perfect["plain"].crps_ratio_pixels > 1
    assert found.perfect[found.best].crps_ratio_pixels < found.perfect["plain"].crps_ratio_pixels
    assert np.isfinite(found.train_psnr) and found.windows == 6


def test_it_is_measured_once_and_again_for_another_autoencoder(own_data):
    found = measure_ceiling(own_data)
    assert read_ceiling(own_data.workspace) == found
    other = replace(own_data, experiment=config.replace(own_data.experiment, **{"evaluation.windows": 3}))
    assert measure_ceiling(other) == found
    text = own_data.workspace.ceiling.read_text()
    own_data.workspace.ceiling.write_text(text.replace(found.autoencoder, "another"))
    assert measure_ceiling(other).windows == 3
    own_data.workspace.ceiling.write_text("{")
    assert read_ceiling(own_data.workspace) is None


def test_training_clips_may_be_too_short_for_the_horizon_and_have_copies(own_data):
    fields = {"dataset.horizontal_flip": True, "dataset.num_frames": 12, "evaluation.horizon": 10}
    data = replace(own_data, experiment=config.replace(own_data.experiment, **fields))
    shards, key = data.encoded_frames("train"), data.cache_key("train")
    encode = frame_encoder(checkpoint.load_autoencoder(data.workspace.autoencoder))
    cache_latents(shards, data.cache("train"), encode, 16, key)
    finish(shards, data.cache("train"), key)
    with pytest.raises(ValueError, match="clip"):
        forecast_windows(data.latents("train"), data.experiment, 4, 0)
    fitting = training_windows(
        data.latents("train"), data.experiment, 4, 0
    )  # on these, beta and multipliers are fitted
    assert fitting.context.shape[:2] == (4, 2) and fitting.truth.shape[:2] == (4, 8)
    train = _Reconstructed.read(data, "train", 4)
    assert train.truth.shape[:2] == (4, 8) and np.isfinite(train.reached("plain").psnr)


def test_the_rows_begin_with_the_last_frame():
    assert ceiling_rows(ceiling(0.7)) == [
        ("last frame repeated", 1.0, 20.0, 0.9),
        ("perfect latents, plain", 2.0, 24.0, 0.5),
        ("perfect latents, copied-0.2", 0.7, 21.0, 0.8),
    ]


def test_the_warning_says_what_helps():
    assert ceiling_warning(ceiling(0.99)) is None
    small = ceiling_warning(ceiling(1.04))
    assert small.startswith("even perfect latents are worse than repeating the last frame (CRPS ratio in pixels 1.040)")
    assert (
        small.index("--autoencoder.steps") < small.index("--autoencoder.channels") < small.index("--autoencoder.path")
    )
    few = ceiling_warning(ceiling(1.04, psnr=22.0, train_psnr=28.0))
    assert "fits its training frames (28.0 dB) but not those of validation (22.0 dB)" in few and "more videos" in few
    assert "\n" not in small + few
