"""Whether the training data are few for a training, so that the network may learn them by heart."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.config import Experiment
from raypipe.data.windows import WindowIndex

MOST_PASSES = 30
"""How often a network may see each training window; at 36 times, joint networks overfitted."""


@dataclass(frozen=True)
class FewData:
    """Training data that are few. windows: of K + 1 frames. passes: how often each is seen. steps: how many would do.

    All windows are seen `MOST_PASSES` times in `steps` training steps.
    """

    windows: int
    passes: float
    steps: int


def few_data(lengths: npt.ArrayLike, experiment: Experiment, steps: int) -> FewData | None:
    """The training data, if they are few for `steps` training steps, else None. lengths: [clips], frames of each."""
    window = experiment.model.num_input_frames + 1
    windows = len(WindowIndex(np.asarray(lengths), window, experiment.dataset.frame_stride))
    passes = steps * experiment.train.batch_size / windows
    if passes <= MOST_PASSES:
        return None
    return FewData(windows, passes, max(1, int(steps * MOST_PASSES / passes)))
