"""Train one component with Ray Train: ``python -m raypipe.train --run-name f-01-nll``.

Missing prerequisites are made first: the built-in dataset, the autoencoder, the latent cache and, for a diffusion,
the flow that it is trained on.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raypipe import checkpoint, cli, config
from raypipe.common import terminal
from raypipe.config import ConfigError, Experiment
from raypipe.config.reference import is_published
from raypipe.distributed.capacity import check_training
from raypipe.distributed.connection import passing_ray, start_ray
from raypipe.distributed.jobs import ComponentJob
from raypipe.distributed.named_run import begun, find_parents, flow_job, keep_aside, plan_run, steps_done
from raypipe.distributed.prepare import prepare
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.report.dry_run import plan_text
from raypipe.report.mlflow_log import training_in_mlflow
from raypipe.report.mlflow_store import check_tracking
from raypipe.search.dry_run import plan_training
from raypipe.training.early_stopping import kept_early
from raypipe.workspace import bucket
from raypipe.workspace.dataset import check_dataset
from raypipe.workspace.layout import Workspace
from raypipe.workspace.run_names import RunName, parse_run_name, run_name

PROG = "raypipe.train"


def make_parser() -> cli.Parser:
    parser = cli.experiment_parser(PROG, "Train one component (flow, denoiser, diffusion or joint) with Ray Train.")
    parser.add_argument("--run-name", metavar="NAME", help="name of the run, <component>-<noise>-<loss>: f-01-nll is a "
                        "flow at noise level 0.1 with loss nll, d-003 a denoiser at 0.03, g-01-regression a diffusion; "
                        "with --component, any name")  # fmt: skip
    parser.add_argument(
        "--num-workers",
        type=cli.positive,
        metavar="N",
        help="number of Ray Train workers, without GPUs (default: train.num_workers)",
    )
    parser.add_argument(
        "--num-gpus", type=cli.positive, metavar="N", help="number of Ray Train workers with one GPU each"
    )
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run of this name")
    cli.add_dry_run(parser)
    parser.add_argument("--wandb", action="store_true", help="also log to Weights & Biases (WANDB_MODE=offline: "
                        "without a network connection)")  # fmt: skip
    parser.add_argument("--mlflow", action="store_true", help="also log to MLflow: to MLFLOW_TRACKING_URI, else to "
                        "mlruns/mlflow.db in the experiment's folder; needs the extra mlflow")  # fmt: skip
    more = cli.more_flags(parser)
    more.add_argument("--component", choices=config.COMPONENTS, help="component to train (default: that of the run "
                        "name, else train.component)")  # fmt: skip
    more.add_argument("--noise-std", type=float, metavar="S", help="noise level, the field train.noise_std")
    more.add_argument("--loss", metavar="LOSS", help="nll or mse for a flow, regression or nll for a diffusion, "
                        "crps_energy, crps or energy for a joint network; the field train.loss")  # fmt: skip
    more.add_argument("--flow", metavar="RUN", help="name of the flow run that a diffusion is trained on (default: "
                        "the experiment's best flow; without one, f-<noise>-nll, trained first)")  # fmt: skip
    more.add_argument("--resume-step", type=cli.positive, metavar="S", help="continue the run from its checkpoint at "
                        "step S, even if the run is finished")  # fmt: skip
    cli.add_break_lock(more)
    more.add_argument("--random-seed", type=int, metavar="S", help="seed of the initial weights, the order of "
                        "windows and the noise")  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args, overrides = cli.parse(parser, argv)
    if args.mlflow:
        check_tracking()
    experiment = cli.experiment(args, {**_fields_from_flags(args, overrides), **overrides})
    train = experiment.train
    name = args.run_name or run_name(train.component, train.noise_std, train.loss)
    workspace = Workspace(bucket.storage_root(args, writes=not args.dry_run), experiment.name)
    if args.dry_run:
        return _dry_run(args, experiment, workspace, name)
    with bucket.stored(workspace.storage, workspace.name, break_lock=args.break_lock):
        return _train(args, experiment, workspace, name)


def _dry_run(args: argparse.Namespace, experiment: Experiment, workspace: Workspace, name: str) -> int:
    train = experiment.train
    with passing_ray() as folder:
        settings = _begin(args, experiment, workspace, name, folder)
        runs = {name: (experiment, train.steps - steps_done(settings))}
        if train.component == "diffusion":
            flow = flow_job(experiment, workspace, args.flow)
            if not (flow.folder / "config.json").is_file():
                runs = {flow.name: (flow.experiment, flow.steps)} | runs
        plan = plan_training(experiment, workspace, runs, use_gpu=settings.use_gpu)
        terminal.say(f"would be trained in {bucket.shown(workspace.storage, workspace.folder)}\n")
        terminal.say(plan_text(plan, workspace.storage))
    return 0


def _begin(
    args: argparse.Namespace, experiment: Experiment, workspace: Workspace, name: str, folder: Path | None = None
) -> Settings:
    """Settings of the Ray run, with Ray started; changes nothing in the storage. folder: see `start_ray`."""
    settings = plan_run(
        experiment,
        workspace,
        name,
        resume=args.resume,
        resume_step=args.resume_step,
        use_gpu=bool(args.num_gpus),
        wandb=args.wandb,
    )
    check_dataset(workspace, experiment)
    start_ray(folder=folder)
    check_training(settings)
    return settings


def _train(args: argparse.Namespace, experiment: Experiment, workspace: Workspace, name: str) -> int:
    train, use_gpu = experiment.train, bool(args.num_gpus)
    settings = _begin(args, experiment, workspace, name)
    with begun(settings):
        prepare(experiment, workspace, use_gpu=use_gpu, wandb=args.wandb)
        settings = keep_aside(settings, workspace.run(train.component, name))
        parents = find_parents(experiment, workspace, args.flow, use_gpu)
        job = ComponentJob(experiment, workspace, name, parents)
        with training_in_mlflow(workspace, train.component, name, settings.name, experiment, args.mlflow):
            train_jobs([job], settings)
    last = checkpoint.read_meta(job.folder)
    terminal.say(
        f"trained {train.component} {name}: {last.step} steps, s = {train.noise_std:g}, loss {last.loss or 'denoising'}"
    )
    if (line := kept_early(job.folder)) is not None:
        terminal.say(line)
    terminal.say(f"model        {job.folder}")
    terminal.say(f"TensorBoard  tensorboard --logdir {job.folder}.log")
    terminal.say("next         python experiments/pipeline.py")
    return 0


def _fields_from_flags(args: argparse.Namespace, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields from the command's own flags, the run name and the config's file name.

    Raises ConfigError if a flag contradicts the run name.
    """
    # A config of the reference code is complete, and its name must not be parsed: there, g-01-nll means a diffusion
    # with the regression loss, trained on the flow f-01-nll.
    explicit = args.component is not None or (args.config is not None and is_published(config.read_yaml(args.config)))
    named = _component_of(args.config, args.run_name, explicit=explicit)
    flags = {
        "train.component": args.component,
        "train.noise_std": args.noise_std,
        "train.loss": "nll" if args.loss == "null" else args.loss,
        "train.num_workers": args.num_gpus or args.num_workers,
        "train.random_seed": args.random_seed,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    if named is None:
        return given
    from_name = {"train.component": named.component, "train.noise_std": named.noise_std, "train.loss": named.loss}
    if args.run_name is not None:
        for name, value in {**given, **overrides}.items():
            if name in from_name and from_name[name] is not None and value != from_name[name]:
                raise ConfigError(
                    f"--run-name: {args.run_name} means {name} {from_name[name]}, but a flag sets it to {value}; "
                    "change one of them, or omit --run-name"
                )
    return {name: value for name, value in from_name.items() if value is not None} | given


def _component_of(path: str | None, name: str | None, *, explicit: bool) -> RunName | None:
    """Parse the run's name, else the config's file name, `<dataset>_<component>-<noise>-<loss>.yaml`.

    None if neither has that form, or if `explicit`: the component is given elsewhere, so names can be anything.
    Raises ConfigError for a run name of another form.
    """
    if explicit:
        return None
    if name is not None:
        return parse_run_name(name)
    match = re.fullmatch(r".+_([fdg]-\d+(?:-[a-z]+)?)", Path(path).stem) if path else None
    return parse_run_name(match[1]) if match else None


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
