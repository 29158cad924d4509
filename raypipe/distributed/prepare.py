"""Prepare an experiment for training: make its dataset, autoencoder and latent cache unless they exist."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from raypipe import config
from raypipe.checkpoint.reference import take_autoencoder
from raypipe.common import terminal
from raypipe.common.errors import UserError
from raypipe.common.files import write_json
from raypipe.common.locks import file_lock
from raypipe.config import ConfigError, Experiment
from raypipe.data.batches import warn_of_short_clips
from raypipe.distributed.capacity import check_nodes
from raypipe.distributed.encoding import prepare_latents
from raypipe.distributed.jobs import AutoencoderJob, run_settings
from raypipe.distributed.trainer import train_jobs
from raypipe.workspace.dataset import ExperimentData, prepare_dataset
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import begin, dataset_hashes


def prepare(
    experiment: Experiment, workspace: Workspace, *, use_gpu: bool = False, wandb: bool = False
) -> ExperimentData:
    """Make the dataset, autoencoder and latent cache of an experiment unless they exist.

    Raises ConfigError if the dataset does not fit the settings, if the experiment started with another dataset, or if
    other nodes cannot read the storage root.
    """
    check_nodes(workspace)
    with terminal.progress_bar(f"make dataset {experiment.dataset.name}", None, "clip", leave=False, delay=1) as bar:
        prepare_dataset(workspace, experiment, partial(_advance, bar))
    data = ExperimentData(experiment, workspace)
    _check_frames(data)
    begin(workspace, experiment)
    _check_dataset(data)
    with file_lock(f"{workspace.autoencoder}.lock"):  # a concurrent training waits here, then uses the autoencoder
        _prepare_autoencoder(data, use_gpu, wandb)
    prepare_latents(data, use_gpu=use_gpu)
    return data


def _check_dataset(data: ExperimentData) -> None:
    """Raise ConfigError if the experiment started with another dataset."""
    experiment, workspace = data.experiment, data.workspace
    began = json.loads((workspace.folder / "manifest.json").read_text()).get("dataset")
    hashes = dataset_hashes(workspace.dataset(experiment))
    # The test split may come later: nothing but the last step of the evaluation uses it.
    if began is None or {"test": hashes.get("test"), **began} != {"test": None, **hashes}:
        raise ConfigError(
            f"--name: {workspace.name!r} in {workspace.storage} was started with another dataset; choose another --name"
        )


def _check_frames(data: ExperimentData) -> None:
    """Raise ConfigError if the frames do not have dataset.image_size, or if all clips of a split are too short."""
    experiment, workspace = data.experiment, data.workspace
    height, width = data.frames("train").frame_shape[:2]
    if (height, width) != (experiment.dataset.image_size,) * 2:
        raise ConfigError(
            f"dataset.image_size: must be {height}, the size of the frames in {workspace.dataset(experiment)}, "
            f"not {experiment.dataset.image_size}"
        )
    given, stride = experiment.model.num_input_frames, experiment.dataset.frame_stride
    for split in data.splits:
        frames = given + (1 if split == "train" else experiment.evaluation.horizon)
        shards = data.frames(split)
        span, longest = (frames - 1) * stride + 1, int(shards.lengths.max())
        if longest < span:
            field = "model.num_input_frames" if split == "train" else "evaluation.horizon"
            raise ConfigError(
                f"{field}: a window of {frames} frames at stride {stride} spans {span} frames, but the longest clip of "
                f"{split} has {longest}; lower {field} or dataset.frame_stride, or convert longer clips"
            )
        warn_of_short_clips(shards, frames, stride)


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _prepare_autoencoder(data: ExperimentData, use_gpu: bool, wandb: bool) -> None:
    experiment, workspace = data.experiment, data.workspace
    folder = workspace.autoencoder
    if (folder / "config.json").is_file():
        return
    if experiment.autoencoder.path is not None:
        try:
            take_autoencoder(Path(experiment.autoencoder.path).expanduser(), folder, data.frames("train"))
        except UserError as error:
            raise ConfigError(f"autoencoder.path: {error}") from None
        return
    recipe = {
        "autoencoder": config.to_dict(experiment.autoencoder),
        "data": data.frames("train").content_hash(),
        "seed": experiment.train.random_seed,
    }
    for other in sorted(workspace.storage.glob("*/autoencoder.log/recipe.json")):
        trained = other.parent.with_name("autoencoder")
        if json.loads(other.read_text()) == recipe and (trained / "config.json").is_file():
            take_autoencoder(trained, folder)  # another experiment trained the same autoencoder
            break
    else:
        train_jobs(
            [AutoencoderJob(experiment, workspace)],
            run_settings(
                experiment,
                workspace,
                "autoencoder",
                use_gpu=use_gpu,
                batch=experiment.autoencoder.batch_size,
                wandb=wandb,
            ),
        )
    write_json(folder.with_name("autoencoder.log") / "recipe.json", recipe)
