"""Measure a few real steps of a training: seconds, memory, and the score of its model. Independent of Ray."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from raypipe import checkpoint, config
from raypipe.checkpoint import Meta
from raypipe.common import memory
from raypipe.common.device import choose_device
from raypipe.config import Experiment
from raypipe.forecast.component import ComponentScorer
from raypipe.models.components import build_component
from raypipe.training.autoencoder import AutoencoderTraining
from raypipe.training.component import ComponentTraining
from raypipe.training.network import NetworkTraining
from raypipe.workspace.dataset import ExperimentData, frame_encoder
from raypipe.workspace.layout import ParentModels
from raypipe.workspace.stand_in import stand_in

LONG = 10_000
"""Training steps in the config of a training that is measured, of which only a few are made."""
WARM_UP, SECONDS, BLOCKS, MOST_STEPS = 5, 1.5, 3, 25
"""Steps before the first that counts, or fewer if they take long; seconds that are measured, about, in a number of
blocks, whose median counts; and the largest number of steps of a block."""
STEADY = {"train.learning_rate": 1e-8, "train.warmup_steps": 0, "train.steps": LONG, "train.num_workers": 1}
"""The weights stay about as they are, so that nothing diverges."""
FORECASTS = {"cpu": 64, "cuda": 4096}
"""Largest number of forecasts of a score that is measured: what is integrated at once."""


@dataclass(frozen=True)
class Request:
    """What a process measures. experiments: of trainings of one stage, one after the other.

    autoencoder: files of its model folder, by name. latent: [C, h, w]. threads: torch threads of a trial, and of a
    worker of another training.
    """

    experiments: tuple[Experiment, ...]
    autoencoder: Mapping[str, bytes]
    latent: tuple[int, ...]
    threads: tuple[int, int]


@dataclass(frozen=True)
class Steps:
    """Seconds of a training step on the velocity, and on the score of forecasts; equal where only one is made."""

    velocity: float
    scored: float


@dataclass(frozen=True)
class Measured:
    """What was measured of one training.

    trial, worker: steps with the threads of a trial, and of a worker of another training.

    score: seconds of a score of the model; 0 for an autoencoder. encode: seconds to encode a frame; 0 for a component.
    memory: bytes that the training adds to its process, on a GPU if it runs on one; process: bytes of the process.
    device_memory: bytes of the GPU; None on a CPU. start: CPU seconds until the process could begin.
    """

    trial: Steps
    worker: Steps
    memory: int
    process: int
    score: float = 0.0
    encode: float = 0.0
    device_memory: int | None = None
    start: float = 0.0


def measure_components(request: Request) -> list[Measured]:
    """Measure trainings of one component. Raises torch.OutOfMemoryError if a GPU has too little memory."""
    start = time.process_time()
    first = request.experiments[0]
    with stand_in(first, request.autoencoder, request.latent, max(4, first.train.batch_size)) as data:
        return [replace(_component(each, data, request.threads), start=start) for each in request.experiments]


def measure_autoencoder(request: Request, trains: bool, use_gpu: bool) -> list[Measured]:
    """Measure the encoding of frames and, if it `trains`, the training of the autoencoder."""
    start = time.process_time()
    steady = {"autoencoder.steps": LONG, "autoencoder.learning_rate": 1e-8}
    experiment = config.replace(request.experiments[0], **steady)
    frames = experiment.autoencoder.batch_size
    with stand_in(experiment, request.autoencoder, request.latent, clips=8, frames=frames) as data:
        torch.set_num_threads(request.threads[1])
        device = choose_device() if use_gpu else torch.device("cpu")
        meter = _Meter(device)
        steps = Steps(0.0, 0.0)
        if trains:
            seconds = _seconds(AutoencoderTraining(experiment, data.frames("train"), device=device), 0)
            steps = Steps(seconds, seconds)
        encode = frame_encoder(checkpoint.load_autoencoder(data.workspace.autoencoder), device)
        some = data.frames("train").clip(0)
        encode(some)
        began, count = time.perf_counter(), 0
        while count == 0 or time.perf_counter() - began < SECONDS / BLOCKS:
            encode(some)
            count += len(some)
        rate = (time.perf_counter() - began) / count
        return [meter.read(Measured(steps, steps, 0, 0, encode=rate, start=start))]


def _component(experiment: Experiment, data: ExperimentData, threads: tuple[int, int]) -> Measured:
    """One training on the data of a stand-in, and a score of its model."""
    data = replace(data, experiment=config.replace(data.experiment, **(_varied(experiment) | STEADY)))
    parents, trial, worker = _parents(data), *threads
    torch.set_num_threads(trial)
    meter = _Meter(choose_device())
    training = ComponentTraining(data.experiment, data, parents)
    steps = _steps(training)
    score = 0.0
    if data.experiment.train.component != "denoiser" or parents.flow is not None:
        score = _score_seconds(data, parents, training.model, min(steps.velocity, steps.scored))
    measured = meter.read(Measured(steps, steps, 0, 0, score))
    if worker != trial:
        torch.set_num_threads(worker)
        measured = replace(measured, worker=_steps(training))
    return measured


def _varied(experiment: Experiment) -> dict[str, object]:
    """The fields in which the trainings of a stage differ, by dotted name."""
    sections = {name: config.to_dict(getattr(experiment, name)) for name in ("model", "train", "sde", "evaluation")}
    return {f"{name}.{field}": value for name, fields in sections.items() for field, value in fields.items()}


def _parents(data: ExperimentData) -> ParentModels:
    """An untrained flow, for the denoisers that are scored with one and the diffusions that are trained on one."""
    component, folder = data.experiment.train.component, data.workspace.run("flow", "stand-in")
    if component not in ("denoiser", "diffusion"):
        return ParentModels()
    if not folder.exists():
        model = data.experiment.model
        flow = build_component("flow", model, data.channels)
        meta = Meta(
            component="flow", model=model, latent_channels=data.channels, autoencoder_hash=data.autoencoder_hash
        )
        checkpoint.save_component(folder, flow, meta)
    return ParentModels(flow=folder)


def _steps(training: ComponentTraining) -> Steps:
    train = training.experiment.train
    if not train.scores_forecasts:
        seconds = _seconds(training, 0)
        return Steps(seconds, seconds)
    velocity = _seconds(training, 0) if train.velocity_steps else 0.0
    scored = _seconds(training, train.velocity_steps) if train.velocity_steps < LONG else velocity
    return Steps(velocity or scored, scored)


def _seconds(training: NetworkTraining, first: int) -> float:
    """Seconds of a training step from step `first` on."""
    training.step = first

    def run(count: int) -> float:
        spent: list[float] = []
        training.advance(training.step + count, lambda progress: spent.append(progress.seconds), count)
        return sum(spent) / count

    seconds, done = run(1), 1
    while done < WARM_UP and done * seconds < SECONDS / BLOCKS:
        seconds, done = run(1), done + 1
    count = max(1, min(MOST_STEPS, math.ceil(SECONDS / BLOCKS / seconds)))
    return statistics.median(run(count) for _ in range(BLOCKS if seconds < SECONDS else 1))


def _score_seconds(data: ExperimentData, parents: ParentModels, model: nn.Module, step: float) -> float:
    """Seconds of a score of a model, from that of a few windows. step: seconds of a training step, which costs about as
    much as three calls of the network for each window."""
    evaluation, train = data.experiment.evaluation, data.experiment.train
    calls = max(1, int(SECONDS * 3 * train.batch_size / step))
    together = min(FORECASTS[choose_device().type], calls)
    horizon = max(1, min(evaluation.horizon, calls // (2 * together)))
    windows = max(1, min(evaluation.windows, together // evaluation.members))
    few = {"windows": windows, "fit_windows": windows, "horizon": horizon}
    one = {"multipliers": evaluation.multipliers[:1], "betas": evaluation.betas[:1]}
    experiment = config.replace(data.experiment, **{f"evaluation.{name}": value for name, value in (few | one).items()})
    scorer = ComponentScorer(experiment, replace(data, experiment=experiment), parents)
    scorer(train.component, model, experiment.evaluation)
    began = time.perf_counter()
    scorer(train.component, model, experiment.evaluation)
    seconds = time.perf_counter() - began
    candidates = evaluation.betas if train.component in ("diffusion", "joint") else evaluation.multipliers
    whole = (evaluation.windows + evaluation.fit_windows * len(candidates)) * evaluation.horizon
    return seconds * whole / (2 * windows * horizon)


class _Meter:
    """The memory that is needed from its construction on."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"
        if self._gpu:
            torch.cuda.reset_peak_memory_stats()
        memory.forget_most()
        self._before = memory.held()

    def read(self, measured: Measured) -> Measured:
        """The measurement with its memory."""
        most = memory.most_held()
        if not self._gpu:
            return replace(measured, memory=max(0, most - self._before), process=most)
        total = torch.cuda.mem_get_info()[1]
        return replace(measured, memory=torch.cuda.max_memory_allocated(), process=most, device_memory=total)
