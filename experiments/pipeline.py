"""All stages and the evaluation: `python experiments/pipeline.py [--config C] [--resume]`."""

from collections.abc import Sequence

from raypipe import cli, evaluate, tune
from raypipe.config import COMPONENTS
from raypipe.launch import start_ray
from raypipe.workspace import check_dataset


def main(argv: Sequence[str] | None = None) -> int:
    parser = tune.make_parser("pipeline.py", "Search flow, denoiser and diffusion, then evaluate their combinations.")
    args, overrides = cli.parse(parser, argv)
    experiment, workspace = tune.open_workspace(args, overrides, lambda w: not (w.best / "manifest.json").is_file())
    check_dataset(workspace, experiment)
    start_ray(dashboard=experiment.search.workers_per_trial > 1)
    tune.run_stages(experiment, workspace, COMPONENTS)
    evaluate.finish(experiment, workspace, experiment.search.top_k)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "pipeline.py"))
