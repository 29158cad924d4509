"""Train one component under Ray Train: ``python -m raypipe.train --run-name f-01-nll``.

What it needs and lacks is made first: the built-in dataset, the autoencoder, the latent cache, and for a
diffusion the flow it is trained on.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from raypipe import checkpoint, cli, config
from raypipe.checkpoint.reference import take_autoencoder
from raypipe.common import terminal
from raypipe.common.files import write_json
from raypipe.config import LOSSES, Component, ConfigError, Experiment
from raypipe.config.reference import is_published
from raypipe.data.batches import warn_of_short_clips
from raypipe.encoding import prepare_latents
from raypipe.launch import Settings, Trainee, check_resources, finished, start_ray, train_jobs
from raypipe.training.autoencoder import AutoencoderTraining
from raypipe.training.component import Training
from raypipe.training.monitor import Label
from raypipe.workspace.dataset import Sources, check_dataset, prepare_dataset
from raypipe.workspace.layout import SPLITS, Parents, Workspace
from raypipe.workspace.manifest import begin, dataset_hashes

PROG = "raypipe.train"
LETTERS: dict[str, Component] = {"f": "flow", "d": "denoiser", "g": "diffusion"}


@dataclass(frozen=True)
class AutoencoderJob:
    """The training of an experiment's autoencoder."""

    experiment: Experiment
    workspace: Workspace

    @property
    def folder(self) -> Path:
        return self.workspace.autoencoder

    @property
    def steps(self) -> int:
        return self.experiment.autoencoder.steps

    @property
    def checkpoint_every(self) -> int:
        return max(1, self.steps // 4)

    @property
    def label(self) -> Label:
        return Label(f"{self.workspace.name}/autoencoder", config.to_dict(self.experiment.autoencoder))

    def build(self, rank: int, world_size: int, device: torch.device, wrap: Any) -> Trainee:
        frames = Sources(self.experiment, self.workspace).frames("train")
        return AutoencoderTraining(self.experiment, frames, rank=rank, world_size=world_size, wrap=wrap, device=device)


@dataclass(frozen=True)
class ComponentJob:
    """The training of one component to its end, into `<component>/<name>`."""

    experiment: Experiment
    workspace: Workspace
    name: str
    parents: Parents = Parents()

    @property
    def folder(self) -> Path:
        return self.workspace.run(self.experiment.train.component, self.name)

    @property
    def steps(self) -> int:
        return self.experiment.train.steps

    @property
    def checkpoint_every(self) -> int:
        return self.experiment.train.checkpoint_every

    @property
    def label(self) -> Label:
        return component_label(self.experiment, self.workspace)

    def build(self, rank: int, world_size: int, device: torch.device, wrap: Any) -> Trainee:
        return Training(
            self.experiment,
            Sources(self.experiment, self.workspace),
            self.parents,
            rank=rank,
            world_size=world_size,
            wrap=wrap,
            device=device,
        )


def component_label(experiment: Experiment, workspace: Workspace) -> Label:
    """How wandb shows the training of a component, a trial's too."""
    settings = config.to_dict(experiment)
    return Label(
        f"{workspace.name}/{experiment.train.component}", {name: settings[name] for name in ("model", "train", "sde")}
    )


def prepare(experiment: Experiment, workspace: Workspace, *, use_gpu: bool = False, wandb: bool = False) -> Sources:
    """Dataset, autoencoder and latent cache of an experiment, made where they are missing."""
    with terminal.progress_bar(f"make dataset {experiment.dataset.name}", None, "clip", leave=False, delay=1) as bar:
        prepare_dataset(workspace, experiment, partial(_advance, bar))
    sources = Sources(experiment, workspace)
    _check_frames(sources)
    begin(workspace, experiment)
    _check_dataset(sources)
    _prepare_autoencoder(sources, use_gpu, wandb)
    prepare_latents(sources, use_gpu=use_gpu)
    return sources


def _check_dataset(sources: Sources) -> None:
    """Refuse another dataset than the experiment began with."""
    experiment, workspace = sources.experiment, sources.workspace
    began = json.loads((workspace.folder / "manifest.json").read_text()).get("dataset")
    if began != dataset_hashes(workspace.dataset(experiment)):
        raise ConfigError(
            f"--name: {workspace.name!r} in {workspace.storage} began with another dataset; take another --name"
        )


def _check_frames(sources: Sources) -> None:
    """Refuse frames of another size than the experiment's, and clips that are all too short."""
    experiment, workspace = sources.experiment, sources.workspace
    height, width = sources.frames("train").frame_shape[:2]
    if (height, width) != (experiment.dataset.image_size,) * 2:
        raise ConfigError(
            f"dataset.image_size: must be {height}, the size of the frames in {workspace.dataset(experiment)}, "
            f"not {experiment.dataset.image_size}"
        )
    given, stride = experiment.model.num_input_frames, experiment.dataset.frame_stride
    for split in SPLITS:
        frames = given + (1 if split == "train" else experiment.evaluation.horizon)
        shards = sources.frames(split)
        span, longest = (frames - 1) * stride + 1, int(shards.lengths.max())
        if longest < span:
            field = "model.num_input_frames" if split == "train" else "evaluation.horizon"
            raise ConfigError(
                f"{field}: a window of {frames} frames, {stride} apart, spans {span}, and the longest clip of "
                f"{split} has {longest}; lower it or dataset.frame_stride, or convert longer clips"
            )
        warn_of_short_clips(shards, frames, stride)


def _advance(bar: Any, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _prepare_autoencoder(sources: Sources, use_gpu: bool, wandb: bool) -> None:
    experiment, workspace = sources.experiment, sources.workspace
    folder = workspace.autoencoder
    if (folder / "config.json").is_file():
        return
    if experiment.autoencoder.path is not None:
        try:
            take_autoencoder(Path(experiment.autoencoder.path).expanduser(), folder)
        except ValueError as error:
            raise ConfigError(f"autoencoder.path: {error}") from None
        return
    recipe = {
        "autoencoder": config.to_dict(experiment.autoencoder),
        "data": sources.frames("train").content_hash(),
        "seed": experiment.train.random_seed,
    }
    for other in sorted(workspace.storage.glob("*/autoencoder.log/recipe.json")):
        trained = other.parent.with_name("autoencoder")
        if json.loads(other.read_text()) == recipe and (trained / "config.json").is_file():
            take_autoencoder(trained, folder)  # another experiment trained the very same one
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


def run_settings(
    experiment: Experiment,
    workspace: Workspace,
    name: str,
    *,
    use_gpu: bool = False,
    batch: int | None = None,
    **more: Any,
) -> Settings:
    """train.num_workers workers, or as many as divide the batch."""
    batch = batch or experiment.train.batch_size
    workers = max(n for n in range(1, experiment.train.num_workers + 1) if batch % n == 0)
    return Settings(
        storage=workspace.ray / "train",
        name=name,
        num_workers=workers,
        use_gpu=use_gpu,
        cpus_per_worker=experiment.train.cpus_per_worker,
        max_failures=experiment.train.max_failures,
        **more,
    )


@dataclass(frozen=True)
class RunName:
    """What a run's name says: `<component>-<noise>-<loss>`; for a denoiser `d-<noise>`."""

    component: Component
    noise_std: float
    loss: str | None


def parse_run_name(name: str) -> RunName:
    """`f-01-nll` is a flow at s = 0.1 with loss nll; `null` is nll. Raises ConfigError for any other form."""
    match = re.fullmatch(r"([a-z]+)-(\d+)(?:-([a-z]+))?", name)
    component = LETTERS.get(match[1]) if match else None
    losses = LOSSES[component] if component else ()
    loss = "nll" if match and match[3] == "null" else match[3] if match else None
    if match is None or component is None or (loss is not None and loss not in losses) or (losses and loss is None):
        if match is not None and component == "denoiser" and loss == "nll":
            return RunName(component, _noise(match[2]), None)
        choices = "f-<noise>-nll|mse, d-<noise> or g-<noise>-regression|nll"
        raise ConfigError(
            f"--run-name: must be {choices}, such as f-01-nll (s = 0.1), not {name!r}; or say --component, "
            "--noise-std and --loss"
        )
    return RunName(component, _noise(match[2]), loss)


def _noise(digits: str) -> float:
    """`01` is 0.1, `003` is 0.03, `0` is 0, `1` is 1: a leading zero stands before the decimal point."""
    return float(f"0.{digits[1:]}") if digits.startswith("0") and len(digits) > 1 else float(digits)


def run_name(component: Component, noise_std: float, loss: str | None) -> str:
    """The inverse of `parse_run_name`."""
    digits = f"{noise_std:g}".replace(".", "")
    letter = next(key for key, value in LETTERS.items() if value == component)
    return "-".join([letter, digits, *([loss] if loss else [])])


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


def _parents(experiment: Experiment, workspace: Workspace, flow: str | None, use_gpu: bool) -> Parents:
    """The flow of a diffusion: the named one, the search's best, or one trained now."""
    train = experiment.train
    if train.component != "diffusion":
        return Parents()
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
    return Parents(flow=folder)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
