"""Forecasts of a few test clips, which the report shows: of random ones, and of the worst, the median and the best."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raypipe.common.files import atomic_path
from raypipe.data.frames import to_float, to_uint8
from raypipe.evaluation.combinations import Combination, HeldOutSplit
from raypipe.evaluation.predictor import combination_predictor
from raypipe.forecast.predictor import Predictor, load_predictor
from raypipe.forecast.windows import read_window, window_starts
from raypipe.metrics.ensemble import Score
from raypipe.workspace.dataset import ExperimentData

SAMPLES = 6
"""Number of clips."""
SAMPLE_MEMBERS = 3
"""Number of members of each forecast."""
SAMPLE_INTERPOLATE = 4
"""Frames per frame interval of a forecast, in-between frames included."""


def save_samples(data: ExperimentData, score: Score | None, rival: Combination | None = None) -> None:
    """Forecast a few test clips with the predictor in `best/`, and with a rival if there is one.

    Writes `samples/sample-N.npz` of random windows, and `samples/cases/` with the `worst`, the `median` and the `best`
    window by the CRPS that the chosen combination has there. score: its score on the test windows; without it (None)
    there are no cases.
    """
    experiment, evaluation = data.experiment, data.experiment.evaluation
    predictor, lengths = load_predictor(data.workspace.best), data.frames("test").lengths
    folder = data.workspace.folder / "samples"
    drawn = zip(*window_starts(lengths, experiment, SAMPLES, evaluation.seed), strict=True)
    other = None if rival is None else combination_predictor(data, rival)
    for number, (clip, start) in enumerate(drawn):
        made = _forecast(data, predictor, clip, start)
        if rival is not None and other is not None:
            made |= {"rival": _forecast(data, other, clip, start)["prediction"]}
            made |= {"rival_name": str(rival.baseline), "rival_steps": rival.steps}
        _save(folder / f"sample-{number}.npz", made)
    if score is None:
        return
    clips, starts = window_starts(lengths, experiment, evaluation.test_windows, evaluation.seed)
    crps = score.crps.mean(1) / score.reference.mean()  # their mean is the CRPS ratio
    worst_first = np.argsort(-crps, kind="stable")
    for name, place in (("worst", 0), ("median", len(crps) // 2), ("best", -1)):
        window = int(worst_first[place])
        clip, start = clips[window], starts[window]
        about = {"clip": data.frames("test").names[clip], "start": start, "windows": len(crps)}
        about |= {"score": crps[window], "mean": crps.mean()}
        _save(folder / "cases" / f"{name}.npz", _forecast(data, predictor, clip, start, window) | about)


def forecast_first(data: ExperimentData, split: HeldOutSplit, predictor: Predictor | None = None) -> dict[str, Any]:
    """The true and the predicted frames of a random window of a split, see `_forecast`.

    predictor: None for the one in `best/`.
    """
    experiment = data.experiment
    (clip,), (start,) = window_starts(data.frames(split).lengths, experiment, 1, experiment.evaluation.seed)
    return _forecast(data, predictor or load_predictor(data.workspace.best), clip, start, split=split)


def _forecast(
    data: ExperimentData, predictor: Predictor, clip: int, start: int, window: int = 0, split: HeldOutSplit = "test"
) -> dict[str, Any]:
    """The true and the predicted frames of a window. window: its number, on which the noise depends."""
    experiment = data.experiment
    given, horizon = experiment.model.num_input_frames, experiment.evaluation.horizon
    read = read_window(data.frames(split), clip, start, given + horizon, experiment.dataset.frame_stride)
    truth = torch.from_numpy(read)
    predicted = predictor.predict(
        to_float(truth[None, :given]),
        horizon,
        members=SAMPLE_MEMBERS,
        interpolate=SAMPLE_INTERPOLATE,
        seed=experiment.evaluation.seed,
        first_window=window,
    )[0]
    return {
        "truth": truth.numpy(),
        "prediction": to_uint8(predicted[:, SAMPLE_INTERPOLATE - 1 :: SAMPLE_INTERPOLATE]).numpy(),
        "interpolated": to_uint8(predicted[0]).numpy(),
        "given": given,
        "interpolate": SAMPLE_INTERPOLATE,
    }


def _save(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **content)
