"""Score the combinations of the best flows, denoisers and diffusions: ``python -m raypipe.evaluate``.

All combinations are scored on the validation split, in parallel Ray tasks. The best one and the baselines are then
scored once on the test split; `rivals` that are not trained yet are trained before. The best one is saved in
``best/``, which `raypipe.load_predictor` and ``raypipe.generate`` read.
"""

import shutil
from collections.abc import Sequence

from raypipe import cli
from raypipe.common import terminal
from raypipe.config import ConfigError
from raypipe.distributed.capacity import check_evaluation
from raypipe.distributed.connection import start_ray
from raypipe.evaluation.perceptual.weights import ACCEPTED, Kind, check_weights
from raypipe.evaluation.run import StageFinalists, is_searched
from raypipe.report.summary import finish
from raypipe.search.rivals import train_rivals
from raypipe.workspace.claims import latest
from raypipe.workspace.layout import Workspace

PROG = "raypipe.evaluate"
ABOUT = """Score the combinations of the best flows, denoisers and diffusions of an experiment.

This is the experiment given by --name, else the latest one with a finished search; with --config, the latest one that
has the name of that config. Its stored config is used, changed by the config fields given as flags."""


def make_parser() -> cli.Parser:
    parser = cli.experiment_parser(PROG, ABOUT)
    parser.add_argument(
        "--top-k",
        type=cli.positive,
        metavar="K",
        help="number of finalists of each stage to combine (default: search.top_k)",
    )
    scores: dict[Kind, str] = {"i3d": "FVD", "lpips": "LPIPS", "vjepa": "JEDi"}
    for kind, score in scores.items():
        parser.add_argument(
            f"--{kind}-weights",
            metavar="FILE",
            help=f"weights for {score}: {ACCEPTED[kind]} (short for --evaluation.{kind}_weights)",
        )
    parser.add_argument(
        "--again",
        action="store_true",
        help="delete earlier scores and score everything again, including the test split",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, overrides = cli.parse(make_parser(), argv)
    files = {f"evaluation.{kind}_weights": getattr(args, f"{kind}_weights") for kind in ACCEPTED}
    overrides |= {name: path for name, path in files.items() if path is not None}
    storage = cli.storage_root(args)
    if args.name:
        workspace = Workspace(storage, args.name)
        workspace.experiment()
    else:
        named = cli.experiment(args, overrides).name if args.config else None
        found = latest(storage, is_searched, like=named)
        if found is None:
            raise ConfigError(
                f"--storage: no finished search in {str(storage)!r}; run python experiments/pipeline.py first"
            )
        workspace = found
    experiment = cli.with_overrides(workspace.experiment(), overrides)
    StageFinalists.read(workspace)
    check_weights(experiment)
    start_ray()
    check_evaluation(experiment)
    if args.again:
        shutil.rmtree(workspace.evaluation, ignore_errors=True)
    terminal.say(f"evaluating {workspace.folder}")
    train_rivals(experiment, workspace)
    finish(experiment, workspace, args.top_k or experiment.search.top_k)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
