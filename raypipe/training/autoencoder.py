"""Training of the autoencoder on single frames, and measurement of its latent scale."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from raypipe import checkpoint, config
from raypipe.common.seeds import step_generator
from raypipe.config import Experiment
from raypipe.data.batches import TrainBatch, WindowBatches
from raypipe.data.frames import to_float
from raypipe.data.shards import Shards
from raypipe.data.windows import Sampler, WindowIndex
from raypipe.models.autoencoder import Autoencoder, Reconstruction, build_autoencoder, measure_scale
from raypipe.training.loop import Schedule
from raypipe.training.network import NetworkTraining

SCALE_FRAMES = 2048
"""Number of training frames on which the latent scale is measured, to a relative error far below 1%."""
BACKGROUND_FRAMES = 9
"""Number of frames of a clip whose median is taken as its background."""


class AutoencoderTraining(NetworkTraining):
    """Training of an autoencoder on single frames. The latent scale is measured after the last step.

    rank, world_size: of this worker. wrap: wraps the module for distributed training (DistributedDataParallel).
    """

    module: Autoencoder

    def __init__(
        self,
        experiment: Experiment,
        frames: Shards,
        *,
        rank: int = 0,
        world_size: int = 1,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
        device: torch.device,
    ) -> None:
        settings, seed = experiment.autoencoder, experiment.train.random_seed
        self._settings = settings
        self._seed = seed
        self._frames = frames
        torch.manual_seed(seed)
        module = build_autoencoder(settings).to(device)
        index = WindowIndex(frames.lengths, 1)
        borders = index.borders(frames.shard_of)
        sampler = Sampler(len(index), settings.batch_size, seed, rank, world_size, borders)
        background = backgrounds(frames) if settings.foreground_weight > 1 else None
        super().__init__(
            module,
            AutoencoderTask(module if wrap is None else wrap(module), settings, seed, background),
            WindowBatches(frames, 1, 1, sampler, pin_memory=device.type == "cuda"),
            autoencoder_schedule(settings),
            world_size=world_size,
        )

    def reached(self, step: int) -> None:
        if step == self._settings.steps:
            self.module.scale.copy_(measure_scale(self.module, self._some_frames()))

    def save(self, folder: Path) -> None:
        """Save a model folder that `restore` and `checkpoint.load_autoencoder` can read."""
        checkpoint.save_autoencoder(folder, self.module, self._settings, step=self.step, optimizer=self.optimizer)

    def _some_frames(self) -> Iterator[Tensor]:
        """Batches of training frames [b, 3, H, W] in [-1, 1] for the latent scale; the same on all ranks."""
        sampler = Sampler(int(self._frames.lengths.sum()), 64, self._seed)
        batches = WindowBatches(self._frames, 1, 1, sampler)
        device = next(self.module.parameters()).device
        for step in range(min(sampler.steps_per_epoch, SCALE_FRAMES // 64)):
            yield to_float(batches.batch(step).data[:, 0].to(device))


def backgrounds(frames: Shards) -> Tensor:
    """Background of each clip, uint8 [clips, H, W, 3]: the median over frames spread evenly over the clip."""
    medians = []
    for i, length in enumerate(frames.lengths.tolist()):
        which = np.unique(np.linspace(0, length - 1, BACKGROUND_FRAMES).round().astype(np.int64))
        medians.append(np.median(frames.frames(i, which), axis=0).astype(np.uint8))
    return torch.from_numpy(np.stack(medians))


class AutoencoderTask:
    """Reconstruction loss of an autoencoder on frames, uint8 [b, 1, H, W, 3].

    background: background of each clip, uint8 [clips, H, W, 3]. Pixels that differ from it are weighted by
    settings.foreground_weight, since moving objects cover few pixels.
    """

    def __init__(self, module: nn.Module, settings: config.Autoencoder, seed: int, background: Tensor | None) -> None:
        self.module = module
        self._settings = settings
        self._seed = seed
        self._background = background

    def loss(self, batch: TrainBatch) -> Tensor:
        """Weighted mean squared error of pixel values in [-1, 1], plus the loss of the quantizer if there is one."""
        frames = to_float(batch.data[:, 0])
        weight = torch.ones_like(frames[:, :1])
        if self._background is not None and self._settings.foreground_weight > 1:
            behind = to_float(self._background[batch.clips.cpu()].to(frames.device))
            moving = (frames - behind).abs().amax(1, keepdim=True) > 0.1
            weight = weight + (self._settings.foreground_weight - 1) * moving
        if self._settings.symmetries:
            frames, weight = self._turn(batch, frames, weight)
        result: Reconstruction = self.module(frames)
        error = ((result.frames.float() - frames).square() * weight).mean((1, 2, 3))
        # Normalized per frame, so that the gradient does not depend on how the batch is split over ranks.
        return (error / weight.mean((1, 2, 3))).mean() + result.auxiliary_loss

    def _turn(self, batch: TrainBatch, frames: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Apply one of the eight symmetries of the square, chosen at random, to each frame and its weight."""
        generator = step_generator(self._seed, batch.step, 1)
        mine = slice(batch.offset, batch.offset + len(frames))
        choice = torch.randint(8, (batch.total,), generator=generator)[mine].to(frames.device)[:, None, None, None]
        both = torch.cat([frames, weight], 1)
        both = torch.where(choice % 2 == 0, both, both.flip(-1))
        both = torch.where(choice // 2 % 2 == 0, both, both.flip(-2))
        both = torch.where(choice // 4 == 0, both, both.transpose(-1, -2))
        return both[:, :3], both[:, 3:]


def autoencoder_schedule(settings: config.Autoencoder) -> Schedule:
    """Cosine schedule with a linear warm-up over the first 5% of the steps."""
    warmup = max(1, settings.steps // 20)
    return Schedule(settings.steps, settings.learning_rate, warmup, "cosine", settings.weight_decay)
