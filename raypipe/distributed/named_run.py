"""A named training run of one component: new or resumed, and the flow that a diffusion is trained on."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from raypipe import checkpoint, config
from raypipe.config import Component, ConfigError, Experiment
from raypipe.distributed.jobs import ComponentJob, run_settings
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.workspace.claims import contents, resumable, some
from raypipe.workspace.layout import ParentModels, Workspace
from raypipe.workspace.run_names import run_name


def plan_run(
    experiment: Experiment,
    workspace: Workspace,
    name: str,
    *,
    resume: bool = False,
    resume_step: int | None = None,
    use_gpu: bool = False,
    wandb: bool = False,
) -> Settings:
    """Settings of a new or resumed Ray run; changes nothing on disk.

    resume_step: resume from the checkpoint of this step, in a new Ray run. Raises ConfigError if the run exists and
    is not resumed, or if there is no run or checkpoint to resume.
    """
    train = experiment.train
    folder = workspace.run(train.component, name)
    ray_name = f"{train.component}-{name}"
    storage = workspace.ray / "train"
    is_begun, done = (storage / ray_name).exists(), (folder / "config.json").is_file()
    more: dict[str, Any] = {"use_gpu": use_gpu, "wandb": wandb, "keep_checkpoints": True}
    if resume_step is not None:
        source = _checkpoint_at(storage, ray_name, folder, resume_step)
        number = len(list(storage.glob(f"{ray_name}*")))
        return run_settings(experiment, workspace, f"{ray_name}-from-{resume_step}-{number}", start_from=source, **more)
    if done and not resume:
        raise ConfigError(f"--run-name: {name!r} is trained already, in {folder}; choose another --run-name or --name")
    if is_begun and not done and not resume:
        raise ConfigError(
            f"--run-name: {name!r} is unfinished; add --resume to continue it, or choose another --run-name"
        )
    if resume and not is_begun and not done:
        raise ConfigError(
            f"--resume: no run {name!r} in {folder.parent} ({_runs(workspace, train.component)}); omit --resume to "
            "start it, or correct --run-name, --name or --storage"
        )
    return run_settings(experiment, workspace, ray_name, **more)


def _runs(workspace: Workspace, component: Component) -> str:
    """What an experiment holds instead of a run that was not found: its runs, or if it does not exist, the others."""
    if not workspace.folder.exists():
        return f"{workspace.storage}: {contents(workspace.storage)}"
    trained = [path.parent.name for path in workspace.run(component, "").glob("*/config.json")]
    ray_runs = [path.name.removeprefix(f"{component}-") for path in (workspace.ray / "train").glob(f"{component}-*")]
    return some(sorted({*trained, *ray_runs}), f"{component} run")


@contextmanager
def begun(settings: Settings) -> Iterator[None]:
    """Mark a run as begun, by the folder of its Ray run, so that --resume finds it after Ctrl-C or a kill; lock it.

    If the block fails before anything is written to that folder, it is removed. Raises ConfigError if another process
    trains the run.
    """
    folder = settings.storage / settings.name
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    busy = "is training this run; wait until it ends, or choose another --run-name"
    with resumable(folder, busy, lambda: False, made):
        yield


def keep_aside(settings: Settings, folder: Path) -> Settings:
    """Rename the model folder of a run that is resumed from an earlier step. Returns the settings with its new name."""
    if settings.start_from is None or not folder.exists():
        return settings
    aside = folder.with_name(f".{folder.name}.before-{time.time_ns()}")
    folder.rename(aside)
    return replace(settings, start_from=aside) if settings.start_from == folder else settings


def _checkpoint_at(storage: Path, ray_name: str, folder: Path, step: int) -> Path:
    """Folder of the checkpoint of a run at a step: a checkpoint of Ray Train, or the trained model."""
    found: dict[int, Path] = {}
    for candidate in [*sorted(storage.glob(f"*/checkpoint_*/{ray_name}")), folder]:
        if (candidate / "config.json").is_file():
            found[checkpoint.read_meta(candidate).step] = candidate
    if step not in found:
        steps = ", ".join(map(str, sorted(found))) or "none"
        raise ConfigError(f"--resume-step: no checkpoint of {ray_name!r} at step {step}; available steps: {steps}")
    return found[step]


def steps_done(settings: Settings) -> int:
    """Number of training steps that a resumed run does not make again."""
    found = [*(settings.storage / settings.name).glob(f"checkpoint_*/{settings.name}")]
    if settings.start_from is not None:
        found = [settings.start_from]
    return max((checkpoint.read_meta(path).step for path in found if (path / "config.json").is_file()), default=0)


def find_parents(experiment: Experiment, workspace: Workspace, flow: str | None, use_gpu: bool) -> ParentModels:
    """The flow that a diffusion is trained on, trained now if it is to be; none for other components.

    Raises ConfigError as `flow_job` does.
    """
    if experiment.train.component != "diffusion":
        return ParentModels()
    job = flow_job(experiment, workspace, flow)
    if not (job.folder / "config.json").is_file():
        name = f"flow-{job.name}"
        train_jobs([job], run_settings(job.experiment, workspace, name, use_gpu=use_gpu, keep_checkpoints=True))
    return ParentModels(flow=job.folder)


def flow_job(experiment: Experiment, workspace: Workspace, flow: str | None) -> ComponentJob:
    """The training of the flow that a diffusion is trained on, whose model may be there.

    The flow is the one named by `flow` or train.flow, else the best one of the flow stage of the search, else one
    that is to be trained at the noise level of the diffusion. Raises ConfigError if the chosen flow does not exist.
    """
    train = experiment.train
    flow = flow or train.flow
    handed_on = workspace.finalists("flow")
    if flow is None and handed_on.is_file():
        flow = json.loads(handed_on.read_text())[0]["model"]
    name = flow or run_name("flow", train.noise_std, "nll")
    folder = workspace.run("flow", name)
    if flow is not None and not (folder / "config.json").is_file():
        raise ConfigError(
            f"--flow: no flow {name!r} in {folder.parent}; train it first with --run-name {name}, or import a "
            f"released checkpoint: python -m raypipe.checkpoint import FILE.pth --out {folder}"
        )
    needed = {"train.component": "flow", "train.loss": "nll", "train.noise_std": train.noise_std}
    return ComponentJob(config.replace(experiment, **needed), workspace, name)
