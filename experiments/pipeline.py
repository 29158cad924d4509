"""Search all stages, then evaluate: `python experiments/pipeline.py [--config C] [--resume]`."""

from collections.abc import Sequence

from raypipe import cli, tune
from raypipe.report import summary
from raypipe.search import opening, pipeline
from raypipe.workspace.claims import hold


def main(argv: Sequence[str] | None = None) -> int:
    parser = tune.make_parser(
        "pipeline.py", "Search flow, denoiser, diffusion and joint, then evaluate their combinations."
    )
    args, overrides = cli.parse(parser, argv)
    source = opening.warm_start(args)
    experiment, workspace = opening.open_workspace(args, overrides, pipeline.is_unfinished, check=tune.start)
    with hold(workspace):
        pipeline.run_stages(experiment, workspace, experiment.search.searched, warm_start=source, wandb=args.wandb)
        summary.finish(experiment, workspace, experiment.search.top_k)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "pipeline.py"))
