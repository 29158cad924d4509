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
from raypipe.workspace.clips import check_clips, clips_of, window_frames
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
    check_same_dataset(data)
    with file_lock(f"{workspace.autoencoder}.lock"):  # a concurrent training waits here, then uses the autoencoder
        _prepare_autoencoder(data, use_gpu, wandb)
    prepare_latents(data, use_gpu=use_gpu)
    return data


def check_same_dataset(data: ExperimentData) -> None:
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
    """Raise ConfigError if the frames do not fit the config, and name clips that are too short in a warning."""
    experiment, workspace = data.experiment, data.workspace
    check_clips(experiment, workspace.dataset(experiment), clips_of(workspace, experiment))
    for split in data.splits:
        warn_of_short_clips(data.frames(split), window_frames(experiment, split), experiment.dataset.frame_stride)


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
    trained = trained_elsewhere(data)
    if trained is not None:
        take_autoencoder(trained, folder)
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
    write_json(folder.with_name("autoencoder.log") / "recipe.json", _recipe(data))


def trained_elsewhere(data: ExperimentData) -> Path | None:
    """Folder of the same autoencoder that another experiment in the storage root has trained; None if none has."""
    recipe = _recipe(data)
    for other in sorted(data.workspace.storage.glob("*/autoencoder.log/recipe.json")):
        trained = other.parent.with_name("autoencoder")
        if json.loads(other.read_text()) == recipe and (trained / "config.json").is_file():
            return trained
    return None


def _recipe(data: ExperimentData) -> dict[str, Any]:
    """What the weights of an autoencoder that is trained depend on."""
    return {
        "autoencoder": config.to_dict(data.experiment.autoencoder),
        "data": data.frames("train").content_hash(),
        "seed": data.experiment.train.random_seed,
    }
