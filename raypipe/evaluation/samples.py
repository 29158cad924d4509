"""Forecasts of a few test clips, which the report shows."""

import numpy as np
import torch

from raypipe.common.files import atomic_path
from raypipe.data.frames import to_float, to_uint8
from raypipe.forecast.predictor import load_predictor
from raypipe.forecast.windows import choose_windows, read_window
from raypipe.workspace.dataset import ExperimentData

SAMPLES = 6
"""Number of clips."""
SAMPLE_MEMBERS = 3
"""Number of members of each forecast."""
SAMPLE_INTERPOLATE = 4
"""Frames per frame interval of a forecast, in-between frames included."""


def save_samples(data: ExperimentData) -> None:
    """Forecast a few test clips with the predictor in `best/`; writes `samples/sample-N.npz`."""
    experiment, workspace = data.experiment, data.workspace
    predictor, shards = load_predictor(workspace.best), data.frames("test")
    given, stride, horizon = (
        experiment.model.num_input_frames,
        experiment.dataset.frame_stride,
        experiment.evaluation.horizon,
    )
    clips, starts = choose_windows(
        shards.lengths, (given + horizon - 1) * stride + 1, SAMPLES, experiment.evaluation.seed
    )
    for number, (clip, start) in enumerate(zip(clips, starts, strict=True)):
        truth = torch.from_numpy(read_window(shards, clip, start, given + horizon, stride))
        context = to_float(truth[None, :given])
        predicted = predictor.predict(
            context, horizon, members=SAMPLE_MEMBERS, interpolate=SAMPLE_INTERPOLATE, seed=experiment.evaluation.seed
        )[0]
        whole = predicted[:, SAMPLE_INTERPOLATE - 1 :: SAMPLE_INTERPOLATE]
        with atomic_path(workspace.folder / "samples" / f"sample-{number}.npz") as path, path.open("wb") as file:
            np.savez_compressed(
                file,
                truth=truth.numpy(),
                prediction=to_uint8(whole).numpy(),
                interpolated=to_uint8(predicted[0]).numpy(),
                given=given,
                interpolate=SAMPLE_INTERPOLATE,
            )
