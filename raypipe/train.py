"""Train one component under Ray Train: ``python -m raypipe.train --run-name f-01-nll``.

What it needs and lacks is made first: the built-in dataset, the autoencoder, the latent cache, and for a
diffusion the flow it is trained on.
"""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raypipe import checkpoint, cli, config
from raypipe.common import terminal
from raypipe.config import ConfigError, Experiment
from raypipe.config.reference import is_published
from raypipe.distributed.connection import start_ray
from raypipe.distributed.jobs import ComponentJob, run_settings
from raypipe.distributed.prepare import prepare
from raypipe.distributed.trainer import Settings, check_resources, finished, train_jobs
from raypipe.workspace.dataset import check_dataset
from raypipe.workspace.layout import ParentModels, Workspace
from raypipe.workspace.run_names import RunName, parse_run_name, run_name

PROG = "raypipe.train"


def make_parser() -> cli.Parser:
    parser = cli.experiment_parser(PROG, "Train one component (flow, denoiser or diffusion) under Ray Train.")
    parser.add_argument(
        "--run-name", metavar="NAME", help="<component>-<noise>-<loss>, such as f-01-nll, d-01, g-01-nll"
    )
    parser.add_argument("--component", choices=config.COMPONENTS, help="what to train, where the name does not say it")
    parser.add_argument("--noise-std", type=float, metavar="S", help="noise level")
    parser.add_argument("--loss", metavar="LOSS", help="nll or mse for a flow, regression or nll for a diffusion")
    parser.add_argument("--flow", metavar="RUN", help="the flow run that a diffusion is trained on (default: the "
                        "experiment's best, else f-<noise>-nll, trained first if need be)")  # fmt: skip
    parser.add_argument("--num-workers", type=cli.positive, metavar="N", help="Ray Train workers")
    parser.add_argument("--num-gpus", type=cli.positive, metavar="N", help="as many workers, with a GPU each")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run of this name")
    parser.add_argument("--resume-step", type=cli.positive, metavar="S", help="go on from the checkpoint of step S")
    parser.add_argument("--random-seed", type=int, metavar="S", help="seed of weights, windows and noise")
    parser.add_argument("--wandb", action="store_true", help="log to wandb too (WANDB_MODE=offline works)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args, overrides = cli.parse(parser, argv)
    # A config of the published code tells all; its g-01-nll is a diffusion of loss regression, on the flow f-01-nll.
    told = args.component is not None or (args.config is not None and is_published(config.read_yaml(args.config)))
    named = _component_of(args.config, args.run_name, explicit=told)
    flags = {
        "train.component": args.component or (named.component if named else None),
        "train.noise_std": args.noise_std if args.noise_std is not None else (named.noise_std if named else None),
        "train.loss": args.loss or (named.loss if named else None),
        "train.num_workers": args.num_gpus or args.num_workers,
        "train.random_seed": args.random_seed,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if given.get("train.loss") == "null":
        given["train.loss"] = "nll"
    experiment = cli.experiment(args, {**given, **overrides})
    train = experiment.train
    name = args.run_name or run_name(train.component, train.noise_std, train.loss)
    workspace = Workspace(cli.storage_root(args), experiment.name)
    settings = _settings(experiment, workspace, name, args)

    check_dataset(workspace, experiment)
    start_ray()
    check_resources(settings)
    prepare(experiment, workspace, use_gpu=bool(args.num_gpus), wandb=args.wandb)
    parents = _parents(experiment, workspace, args.flow, bool(args.num_gpus))
    job = ComponentJob(experiment, workspace, name, parents)
    train_jobs([job], settings)
    last = checkpoint.read_meta(job.folder)
    terminal.say(
        f"trained {train.component} {name}: {last.step} steps, s = {train.noise_std:g}, loss {last.loss or 'denoising'}"
    )
    terminal.say(f"model        {job.folder}")
    terminal.say(f"TensorBoard  tensorboard --logdir {job.folder}.log")
    terminal.say("next         python experiments/pipeline.py")
    return 0


def _component_of(path: str | None, name: str | None, *, explicit: bool) -> RunName | None:
    """From the run's name, else from the config's: `<dataset>_<component>-<noise>-<loss>.yaml`.

    explicit: the component is told otherwise, and the names mean nothing.
    """
    if explicit:
        return None
    if name is not None:
        return parse_run_name(name)
    match = re.fullmatch(r".+_([fdg]-\d+(?:-[a-z]+)?)", Path(path).stem) if path else None
    return parse_run_name(match[1]) if match else None


def _settings(experiment: Experiment, workspace: Workspace, name: str, args: Any) -> Settings:
    """Where the Ray run goes; refuses to run over an earlier run, or to resume what is not there."""
    train = experiment.train
    folder = workspace.run(train.component, name)
    ray_name = f"{train.component}-{name}"
    storage = workspace.ray / "train"
    begun, done = (storage / ray_name).exists(), (folder / "config.json").is_file()
    more: dict[str, Any] = {"use_gpu": bool(args.num_gpus), "wandb": args.wandb}
    if args.resume_step is not None:
        source = _checkpoint_at(storage, ray_name, folder, args.resume_step)
        if folder.exists():  # it may be the very source
            aside = folder.with_name(f".{folder.name}.before-{time.time_ns()}")
            folder.rename(aside)
            source = aside if source == folder else source
        number = len(list(storage.glob(f"{ray_name}*")))
        return run_settings(
            experiment, workspace, f"{ray_name}-from-{args.resume_step}-{number}", start_from=source, **more
        )
    if done and not args.resume:
        raise ConfigError(f"--run-name: {name!r} is trained already, in {folder}; take another --run-name or --name")
    if begun and not done and not args.resume:
        raise ConfigError(f"--run-name: {name!r} was begun and not finished; add --resume, or take another --run-name")
    prepared = any(workspace.folder.glob("latents/*/test/index.parquet"))
    if args.resume and not begun and not done and (prepared or not workspace.folder.exists()):
        raise ConfigError(f"--resume: no run {name!r} in {folder.parent}; leave --resume out to begin it")
    return run_settings(experiment, workspace, ray_name, **more)


def _checkpoint_at(storage: Path, ray_name: str, folder: Path, step: int) -> Path:
    """The saved model of a run at a step: one of its last checkpoints, or the trained one."""
    found: dict[int, Path] = {}
    for candidate in [*sorted(storage.glob(f"*/checkpoint_*/{ray_name}")), folder]:
        if (candidate / "config.json").is_file():
            found[checkpoint.read_meta(candidate).step] = candidate
    if step not in found:
        steps = ", ".join(map(str, sorted(found))) or "none"
        raise ConfigError(f"--resume-step: no checkpoint of {ray_name!r} at step {step}; there are: {steps}")
    return found[step]


def _parents(experiment: Experiment, workspace: Workspace, flow: str | None, use_gpu: bool) -> ParentModels:
    """The flow of a diffusion: the named one, the search's best, or one trained now."""
    train = experiment.train
    if train.component != "diffusion":
        return ParentModels()
    flow = flow or train.flow
    handed_on = workspace.finalists("flow")
    if flow is None and handed_on.is_file():
        flow = json.loads(handed_on.read_text())[0]["model"]
    name = flow or run_name("flow", train.noise_std, "nll")
    folder = workspace.run("flow", name)
    if not (folder / "config.json").is_file():
        if flow is not None:
            raise ConfigError(
                f"--flow: no flow {name!r} in {folder.parent}; train it first with --run-name {name}, or put a "
                f"published one there: python -m raypipe.checkpoint import FILE.pth --out {folder}"
            )
        needed = config.replace(
            experiment, **{"train.component": "flow", "train.loss": "nll", "train.noise_std": train.noise_std}
        )
        job = ComponentJob(needed, workspace, name)
        assert not finished(job)
        train_jobs([job], run_settings(needed, workspace, f"flow-{name}", use_gpu=use_gpu))
    return ParentModels(flow=folder)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
