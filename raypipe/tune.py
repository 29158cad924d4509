"""Search the stages of an experiment: flow, denoiser, diffusion; the verb behind ``experiments/tune_*.py``.

A stage's search hands on its best trials; they are trained again at full length with several seeds under
TorchTrainer, scored, and ranked by the mean over seeds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from raypipe import cli, config, records
from raypipe.common import terminal
from raypipe.common.files import write_atomic, write_json
from raypipe.config import COMPONENTS, Axis, Component, ConfigError, Experiment
from raypipe.distributed.connection import start_ray
from raypipe.distributed.prepare import prepare
from raypipe.finalists import NO_DENOISER, Finalist, read_finalists, write_finalists
from raypipe.refits import refit
from raypipe.search import run_search
from raypipe.study import ended_trials
from raypipe.trial import Stage
from raypipe.workspace.claims import claim, hold, latest
from raypipe.workspace.dataset import check_dataset
from raypipe.workspace.layout import Workspace

PARENTS = "parents.json"


def best_of(workspace: Workspace, component: Component) -> Finalist:
    return next(finalist for finalist in read_finalists(workspace, component) if finalist.handed_on)


def is_searched(workspace: Workspace, component: Component, trials: int) -> bool:
    """Whether a stage is finished, with as many trials as are asked for."""
    ended = ended_trials(workspace.study, component)
    return workspace.finalists(component).is_file() and (ended == 0 or ended >= trials)


def run_stage(stage: Stage, extra: Mapping[str, Axis]) -> None:
    """Search one stage, train its winners again, and write what it hands on; does what is left of it."""
    experiment, workspace, component = stage.experiment, stage.workspace, stage.component
    economy = run_search(stage, extra)
    if economy is not None:
        rate, outside = economy.trials_a_minute, 100 * max(0.0, economy.outside)
        terminal.say(f"{component} search: {rate:.1f} trials a minute, {outside:.0f}% of the time outside trials")
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    ranked = records.last_rungs(rows, component)
    if not ranked:
        raise ConfigError(f"{workspace.trials}: every trial of the {component} stage failed; see its error column")
    chosen = records.hand_on(ranked, experiment.search.top_k)
    if len(experiment.search.objectives) > 1:
        chosen += [trial for trial in records.front(ranked) if trial not in chosen]
    write_finalists(workspace, component, refit(stage, chosen))


def make_stage(experiment: Experiment, workspace: Workspace, component: Component) -> tuple[Stage, dict[str, Axis]]:
    """The stage on what the earlier ones handed on, and the axes that this adds.

    A stage that has begun stays on what it began with, even if an earlier one has gone on since: scores on
    other flows are not to be compared.
    """
    if component == "flow":
        return Stage(experiment, workspace, component), {}
    path = workspace.folder / component / PARENTS
    if not path.is_file() or ended_trials(workspace.study, component) == 0:
        flows = [f.model for f in read_finalists(workspace, "flow") if f.handed_on]
        best = None if component == "denoiser" else best_of(workspace, "denoiser")
        denoiser = None if best is None or best.trial == NO_DENOISER else best.model
        write_json(path, {"flows": flows, "denoiser": denoiser})
    parents = json.loads(path.read_text())
    if component == "denoiser":
        return Stage(experiment, workspace, component, flow=parents["flows"][0]), {}
    return Stage(experiment, workspace, component, denoiser=parents["denoiser"]), {
        "train.flow": Axis(choices=parents["flows"])
    }


def stage_table(workspace: Workspace, component: Component) -> str:
    """What a stage handed on, as a table."""
    rows = []
    for f in read_finalists(workspace, component):
        spread = f"{min(f.objectives):.3f}-{max(f.objectives):.3f}" if len(f.objectives) > 1 else ""
        note = "published default" if f.published and f.trial != "published" else ""
        rows.append([f.trial, f.noise_std, f.loss or "-", f.objective, spread, f.closer, f.magnitude, f.model, note])
    header = ["trial", "noise", "loss", "crps_ratio", "over seeds", "closer look", "magnitude", "model", ""]
    return terminal.table(rows, header)


def make_parser(prog: str, text: str) -> cli.Parser:
    parser = cli.experiment_parser(prog, text)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted search, or one of more trials")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of sampler, weights, windows and noise")
    parser.add_argument(
        "--warm-start", metavar="DIR", help="folder or name of another search, whose best points are tried early"
    )
    parser.add_argument("--wandb", action="store_true", help="log every training to Weights & Biases, grouped by stage")
    return parser


Holds = Callable[[Workspace], bool]


def open_workspace(
    args: Any, overrides: Mapping[str, Any], unfinished: Holds, ready: Holds | None = None
) -> tuple[Experiment, Workspace]:
    """The experiment and folder of a command: a fresh one, or with --resume the last that is unfinished.

    ready: without --resume, --name and --config, the last experiment for which it holds is gone on with.
    The folder of a fresh one is made: no other command gets it.
    """
    values = dict(overrides)
    if args.seed is not None:
        values = {"train.random_seed": args.seed, "search.seed": args.seed, **values}
    experiment = cli.experiment(args, values)
    storage = cli.storage_root(args)
    found = None
    if args.resume:
        found = latest(storage, unfinished, like=experiment.name)
        if found is None and args.name:
            raise ConfigError(f"--resume: nothing to resume in {storage / args.name}; leave --resume out to begin")
        if found is None and latest(storage, lambda workspace: True, like=experiment.name) is not None:
            raise ConfigError(
                f"--resume: no unfinished search {experiment.name!r} in {storage}; leave --resume out to begin"
            )
    elif args.name and (storage / args.name / "config.yaml").exists() and not _extends(storage, args.name, unfinished):
        raise ConfigError(
            f"--name: {args.name!r} exists in {storage}; add --resume to go on with it, or take another name"
        )
    elif ready is not None and not args.name and not args.config:
        found = latest(storage, ready, like=experiment.name)
    if found is not None:
        experiment = config.replace(found.experiment(), **values)
    check_dataset(found or Workspace(storage, experiment.name), experiment)
    workspace = found or (Workspace(storage, args.name) if args.name else claim(storage, experiment.name))
    return config.replace(experiment, name=workspace.name), workspace


def _extends(storage: Path, name: str, unfinished: Holds) -> bool:
    """Whether an experiment has begun, but not this search."""
    workspace = Workspace(storage, name)
    return bool(unfinished(workspace)) and not workspace.study.exists()


def main(component: Component, argv: Sequence[str] | None = None) -> int:
    """`experiments/tune_<component>.py`."""
    parser = make_parser(f"tune_{component}.py", f"Search the {component} stage; make what it lacks first.")
    parser.add_argument("--trials", type=cli.positive, metavar="N", help=f"trials of the {component} stage")
    args, overrides = cli.parse(parser, argv)
    field = f"search.{component}_trials"
    if args.trials is not None:
        if field in overrides:
            raise ConfigError(f"--trials: says the same as --{field}; give one of them")
        overrides = {field: args.trials, **overrides}
    earlier = COMPONENTS[: COMPONENTS.index(component)]

    def unfinished(workspace: Workspace) -> bool:
        trials = overrides.get(field) or workspace.experiment().search.trials(component)
        return not is_searched(workspace, component, trials)

    def ready(workspace: Workspace) -> bool:
        """Go on where the stages before this one are done."""
        begun = workspace.finalists(component).is_file()
        return not begun and all(workspace.finalists(stage).is_file() for stage in earlier)

    source = warm_start(args)
    experiment, workspace = open_workspace(args, overrides, unfinished, ready if earlier else None)
    with hold(workspace):
        start_ray(dashboard=experiment.search.workers_per_trial > 1)
        run_stages(experiment, workspace, [*earlier, component], warm_start=source, wandb=args.wandb)
    following = [*COMPONENTS[COMPONENTS.index(component) + 1 :]]
    step = f"python experiments/tune_{following[0]}.py" if following else "python -m raypipe.evaluate"
    terminal.say(f"\nnext   {step}")
    return 0


def warm_start(args: Any) -> Path | None:
    """The experiment that --warm-start names, in the storage root or anywhere else."""
    if args.warm_start is None:
        return None
    for folder in (cli.storage_root(args) / args.warm_start, Path(args.warm_start).expanduser().resolve()):
        if (folder / "trials.parquet").is_file():
            return folder
    raise ConfigError(
        f"--warm-start: no search at {args.warm_start!r} (no trials.parquet); give the folder of one, "
        f"or its name in {cli.storage_root(args)}"
    )


def run_stages(
    experiment: Experiment,
    workspace: Workspace,
    stages: Sequence[Component],
    *,
    warm_start: Path | None = None,
    wandb: bool = False,
) -> None:
    """Run stages one after the other, each with its table at the end; those that are finished only show it."""
    experiment = config.replace(experiment, name=workspace.name)
    prepare(experiment, workspace, wandb=wandb)
    _note_trials(experiment, workspace)
    for component in stages:
        if not is_searched(workspace, component, experiment.search.trials(component)):
            stage, extra = make_stage(experiment, workspace, component)
            run_stage(replace(stage, warm_start=warm_start, wandb=wandb), extra)
        terminal.say(f"\n{component} stage of {workspace.folder}")
        terminal.say(stage_table(workspace, component))


def _note_trials(experiment: Experiment, workspace: Workspace) -> None:
    """Keep the numbers of trials asked for, so that an interrupted extension goes on as one."""
    asked = {f"search.{c}_trials": experiment.search.trials(c) for c in COMPONENTS}
    began = workspace.experiment()
    if config.replace(began, **asked) != began:
        text = yaml.safe_dump(config.to_dict(config.replace(began, **asked)), sort_keys=False)
        write_atomic(workspace.folder / "config.yaml", text)
