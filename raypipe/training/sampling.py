"""What all components are trained on: windows of latents, and a random point on the path of each."""

from collections.abc import Callable

import torch
from torch import Tensor

from raypipe.common.seeds import step_generator, step_seed
from raypipe.config import Experiment
from raypipe.data.batches import TrainBatch
from raypipe.sde.brownian import forecast_keys
from raypipe.sde.path import PathSample, draw, sample_path

Encoder = Callable[[TrainBatch], Tensor]
"""See `ExperimentData.encoder`."""


def begin_step(experiment: Experiment, batch: TrainBatch, encode: Encoder | None) -> Tensor:
    """The windows of a batch as latents, [b, frames, C, h, w]. encode: None: the batch contains latents.

    Also seeds dropout, so that a resumed training has the masks of an uninterrupted one.
    """
    window = batch.data if encode is None else encode(batch)
    if experiment.model.dropout > 0:
        torch.manual_seed(step_seed(experiment.train.random_seed, batch.step, 3 + batch.offset))
    return window


def sample_paths(experiment: Experiment, batch: TrainBatch, window: Tensor) -> PathSample:
    """A point on the path of the first K + 1 latents of each window, [b, frames, C, h, w].

    All ranks draw the random numbers of the global batch from (seed, step) and use their slice of it, so these do not
    depend on the number of ranks.
    """
    window = window[:, : experiment.model.num_input_frames + 1]
    shape = (window.shape[2] * (window.shape[1] - 1), *window.shape[3:])
    generator = step_generator(experiment.train.random_seed, batch.step, 0)
    draws = draw(generator, batch.total, shape, experiment.sde.zero_share if experiment.model.time_input else 0.0)
    mine = draws.part(batch.offset, len(window), window.device)
    return sample_path(window, mine, experiment.train.noise_std, experiment.sde.sigma)


def noise_keys(experiment: Experiment, batch: TrainBatch, device: torch.device, members: int = 1) -> Tensor:
    """Keys of the noise of each member of a forecast of each window, [b * members], the members of a window together.

    They depend on the seed, the step and the number of the window in the global batch.
    """
    count = len(batch.data)
    numbers = torch.arange(batch.offset, batch.offset + count, device=device)
    member = torch.arange(members, device=device).repeat(count)
    seed = step_seed(experiment.train.random_seed, batch.step, 1)
    return forecast_keys(seed, numbers.repeat_interleave(members), member)
