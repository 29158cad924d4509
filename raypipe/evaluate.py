"""Score the combinations of the best flows, denoisers and diffusions: ``python -m raypipe.evaluate``.

All are scored on validation, side by side in Ray tasks. The best one and the baselines then meet the test
split, once. The winner goes to ``best/``, ready for `raypipe.load_predictor` and ``raypipe.generate``.
"""

import shutil
from collections.abc import Sequence

from raypipe import cli
from raypipe.common import terminal
from raypipe.config import ConfigError
from raypipe.distributed.connection import start_ray
from raypipe.evaluation.run import StageFinalists, is_searched
from raypipe.report.summary import finish
from raypipe.workspace.claims import latest
from raypipe.workspace.layout import Workspace

PROG = "raypipe.evaluate"


def make_parser() -> cli.Parser:
    parser = cli.experiment_parser(PROG, "Score the combinations of the best flows, denoisers and diffusions.")
    parser.add_argument(
        "--top-k",
        type=cli.positive,
        metavar="K",
        help="finalists of each stage that are combined (default: search.top_k)",
    )
    parser.add_argument("--again", action="store_true", help="score everything anew, the test split too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, overrides = cli.parse(make_parser(), argv)
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
    if args.again:
        shutil.rmtree(workspace.evaluation, ignore_errors=True)
    terminal.say(f"evaluating {workspace.folder}")
    start_ray()
    finish(experiment, workspace, args.top_k or experiment.search.top_k)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
