"""How far a search is, and its best trials so far: ``python -m raypipe.show [NAME]``, also while it runs."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.errors import ConfigError, nearest
from raypipe.report.overview import as_text
from raypipe.report.state import read_overview
from raypipe.report.view import latest_search
from raypipe.training.monitor import METRICS
from raypipe.workspace import bucket
from raypipe.workspace.claims import contents
from raypipe.workspace.layout import Workspace

PROG = "raypipe.show"
ABOUT = """Show how far a search is: its stages, the best trials so far, what is left to do and how to go on.

It may run, have been killed or be finished; nothing is written to its folder, and no Ray is needed."""
SECONDS = 5.0
"""Time between two looks of --watch."""
REDRAW = "\x1b[H\x1b[J"
"""What makes a terminal clear its screen."""


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog=PROG, description=ABOUT, formatter_class=cli.HELP_FORMAT, allow_abbrev=False)
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the search under the storage root, or its "
                        "folder (default: the latest search)")  # fmt: skip
    parser.add_argument("--watch", action="store_true", help=f"redraw every {SECONDS:g} seconds until the search ends "
                        "or Ctrl-C")  # fmt: skip
    cli.add_storage(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    workspace = _workspace(args.name, bucket.storage_root(args, writes=False))
    if args.watch:
        return _watch(workspace)
    bucket.look(workspace.storage, workspace.name, METRICS)
    terminal.say(as_text(read_overview(workspace)))
    return 0


def _workspace(name: str | None, storage: Path) -> Workspace:
    if name is None:
        return latest_search(storage)
    for folder in (storage / name, Path(name).expanduser().resolve()):
        if (folder / "config.yaml").is_file():
            return Workspace(folder.parent, folder.name)
    known = [path.parent.name for path in storage.glob("*/config.yaml")]
    place = bucket.shown(storage)
    raise ConfigError(f"NAME: no search {name!r} in {place} ({contents(storage)}){nearest(name, known)}")


def _watch(workspace: Workspace) -> int:
    """Redraw until the search ends; where the output is no terminal, print it whenever it has changed."""
    shown = None
    try:
        while True:
            bucket.look(workspace.storage, workspace.name, METRICS)
            overview = read_overview(workspace)
            text = as_text(overview)
            if sys.stdout.isatty():
                width, height = shutil.get_terminal_size()
                lines = [line[:width] for line in text.splitlines()]
                terminal.say(REDRAW + "\n".join(lines[: height - 1]))
            elif text != shown:
                terminal.say(text if shown is None else f"\n{text}")
            if overview.runner is None:
                return 0
            shown = text
            time.sleep(SECONDS)
    except KeyboardInterrupt:
        return cli.INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
