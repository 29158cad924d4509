"""Hyperparameter search of one stage (flow, denoiser, diffusion or joint): ``python -m raypipe.tune flow``.

The best trials of a stage, its finalists, are retrained at full length with several seeds under TorchTrainer, scored,
and ranked by their mean score over seeds. ``experiments/tune_*.py`` run the same commands.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raypipe import cli
from raypipe.common import terminal
from raypipe.config import COMPONENTS, Component, ConfigError, Experiment, Search
from raypipe.distributed.capacity import check_search
from raypipe.distributed.connection import passing_ray, start_ray
from raypipe.report.dry_run import plan_text
from raypipe.report.live_page import live_page
from raypipe.report.mlflow_log import search_in_mlflow
from raypipe.report.mlflow_store import check_tracking
from raypipe.search.budget import Budget
from raypipe.search.dry_run import plan_search
from raypipe.search.opening import open_workspace, warm_start
from raypipe.search.pipeline import run_stages
from raypipe.search.progress import is_searched
from raypipe.workspace import bucket
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace

PROG = "raypipe.tune"


def make_parser(prog: str, text: str) -> cli.Parser:
    """A parser with the flags that all search commands share. text: the description in its help."""
    parser = cli.experiment_parser(prog, text)
    parser.add_argument("--resume", action="store_true", help="continue the latest unfinished search, or extend it "
                        "to a larger number of trials")  # fmt: skip
    cli.add_dry_run(parser)
    more = cli.more_flags(parser)
    more.add_argument("--seed", type=int, metavar="S", help="seed of the sampler (search.seed) and of the trainings "
                        "(train.random_seed)")  # fmt: skip
    more.add_argument(
        "--warm-start",
        metavar="DIR",
        help="folder, URI or name of an earlier search, whose best trials are among the first trials",
    )
    cli.add_break_lock(more)
    more.add_argument(
        "--wandb", action="store_true", help="also log every training to Weights & Biases, grouped by stage"
    )
    more.add_argument("--mlflow", action="store_true", help="also log every training to MLflow, as a child run of "
                        "the search: to MLFLOW_TRACKING_URI, else to mlruns/mlflow.db in the experiment's folder; "
                        "needs the extra mlflow")  # fmt: skip
    return parser


def start(experiment: Experiment, folder: Path | None = None) -> None:
    """Start or join Ray for a search. Raises UserError if its trials or trainings do not fit on the cluster.

    folder: see `start_ray`.
    """
    start_ray(dashboard=experiment.search.workers_per_trial > 1, folder=folder)
    check_search(experiment)


def dry_run(
    opened: Callable[[Path], tuple[Experiment, Workspace]],
    stages: Callable[[Experiment], Sequence[Component]],
    **options: Any,
) -> int:
    """Print what a search would do; returns the exit code.

    opened: opens the experiment with a Ray in this folder. stages, options: see `plan_search`.
    """
    with passing_ray() as folder:
        experiment, workspace = opened(folder)
        plan = plan_search(experiment, workspace, stages(experiment), **options)
        terminal.say(f"would be done in {bucket.shown(workspace.storage, workspace.folder)}\n")
        terminal.say(plan_text(plan, workspace.storage))
    return 0


def stage_parser(component: Component, prog: str) -> cli.Parser:
    """The parser of the search of one stage."""
    parser = make_parser(prog, f"Search the {component} stage; run unfinished earlier stages first.")
    parser.add_argument("--trials", type=cli.positive, metavar="N", help=f"number of trials in the {component} stage "
                        f"(default: search.{component}.trials)")  # fmt: skip
    return parser


def search(component: Component, argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Search the stage of a component, after any earlier stage that is not finished; returns the exit code."""
    began = time.monotonic()
    args, overrides = cli.parse(stage_parser(component, prog or f"tune_{component}.py"), argv)
    field = f"search.{component}.trials"
    if args.mlflow:
        check_tracking()
    if args.trials is not None:
        if field in overrides:
            raise ConfigError(f"--trials: sets the same field as --{field}; give only one of them")
        overrides = {field: args.trials, **overrides}
    earlier = COMPONENTS[: COMPONENTS.index(component)]

    def unfinished(workspace: Workspace, settings: Search) -> bool:
        return not is_searched(workspace, component, settings)

    def ready(workspace: Workspace) -> bool:
        """Whether all earlier stages are finished and this one is not."""
        begun = workspace.finalists(component).is_file()
        return not begun and all(workspace.finalists(stage).is_file() for stage in earlier)

    def opened(folder: Path | None) -> tuple[Experiment, Workspace]:
        def check(experiment: Experiment) -> None:
            if experiment.search.stages[component].trials == 0:
                raise ConfigError(f"{field}: 0, so there is nothing to search; give --trials N")
            start(experiment, folder)

        return open_workspace(args, overrides, unfinished, ready if earlier else None, check=check, extend="--trials")

    source = warm_start(args)
    if args.dry_run:
        return dry_run(opened, lambda experiment: [*earlier, component])
    experiment, workspace = opened(None)
    with hold(workspace, break_lock=args.break_lock), live_page(workspace), search_in_mlflow(workspace, args.mlflow):
        budget, stages = Budget(experiment.search.minutes, began), [*earlier, component]
        run_stages(experiment, workspace, stages, budget=budget, warm_start=source, wandb=args.wandb)
    if (line := budget.overrun()) is not None:
        terminal.say(line)
    following = [c for c in experiment.search.searched if COMPONENTS.index(c) > COMPONENTS.index(component)]
    step = f"python experiments/tune_{following[0]}.py" if following else "python -m raypipe.evaluate"
    terminal.say(f"\nnext   {step}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m raypipe.tune STAGE`, which takes the same flags as `experiments/tune_<stage>.py`."""
    parser = cli.Parser(prog=PROG, description="Search one stage. To list its flags: STAGE --help.", allow_abbrev=False)
    parser.add_argument("stage", choices=COMPONENTS, help="stage to search; each builds on the ones before")
    arguments = list(sys.argv[1:] if argv is None else argv)
    stage: Component = parser.parse_args(arguments[:1]).stage
    return search(stage, arguments[1:], f"{PROG} {stage}")


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
