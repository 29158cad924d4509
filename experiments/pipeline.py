"""Search all stages, then evaluate: `python experiments/pipeline.py [--config C] [--resume]`."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from raypipe import cli, tune
from raypipe.config import Experiment
from raypipe.evaluation.protocol import check_protocol
from raypipe.report import summary
from raypipe.report.live_page import live_page
from raypipe.report.mlflow_log import search_in_mlflow
from raypipe.report.mlflow_store import check_tracking
from raypipe.search import opening, pipeline, progress
from raypipe.search.budget import Budget
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace


def main(argv: Sequence[str] | None = None) -> int:
    began = time.monotonic()
    parser = tune.make_parser(
        "pipeline.py", "Search flow, denoiser, diffusion and joint, then evaluate their combinations."
    )
    args, overrides = cli.parse(parser, argv)
    if args.mlflow:
        check_tracking()
    source = opening.warm_start(args)

    def opened(folder: Path | None) -> tuple[Experiment, Workspace]:
        check = partial(tune.start, folder=folder)
        return opening.open_workspace(args, overrides, progress.is_unfinished, check=check)

    if args.dry_run:
        return tune.dry_run(opened, lambda found: found.search.searched, evaluates=True, check=check_protocol)
    experiment, workspace = opened(None)
    with hold(workspace, break_lock=args.break_lock), live_page(workspace), search_in_mlflow(workspace, args.mlflow):
        budget, stages = Budget(experiment.search.minutes, began), experiment.search.searched
        pipeline.run_stages(
            experiment, workspace, stages, budget=budget, evaluates=True, check=check_protocol, warm_start=source,
            wandb=args.wandb,
        )  # fmt: skip
        summary.finish(experiment, workspace, experiment.search.top_k, budget)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "pipeline.py"))
