"""What every command line has in common: flags, dotted overrides, one-line errors, exit codes."""

import argparse
import difflib
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlparse

from raypipe import config
from raypipe.common.errors import UserError
from raypipe.config import ConfigError, Experiment

BAD_INPUT = 2
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse that explains a mistake in one line, with the nearest right flag."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see --help\n")


def experiment_parser(prog: str, description: str) -> Parser:
    """A parser with the flags that every verb takes, and all config fields in its help."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog=_fields_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML of the experiment (default: the built-in demo)")
    parser.add_argument(
        "--storage",
        metavar="DIR",
        help="storage root, a folder that all nodes see (default: $RAYPIPE_STORAGE or ~/raypipe)",
    )
    parser.add_argument("--name", metavar="NAME", help="the experiment's folder under the storage root")
    return parser


def parse(parser: Parser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The parser's own flags, and the overrides `--section.field value` by dotted name."""
    args, rest = parser.parse_known_args(argv)
    known = dict(config.field_names())
    overrides: dict[str, Any] = {}
    while rest:
        flag, _, value = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in known:
            flags = [s for action in parser._actions for s in action.option_strings] + [f"--{k}" for k in known]
            close = difflib.get_close_matches(flag, flags, n=1, cutoff=0.5)
            parser.error(f"unknown argument {flag!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
        if not value:
            if not rest or rest[0].startswith("--"):
                parser.error(f"argument {flag}: expected a value")
            value = rest.pop(0)
        overrides[name] = config.parse_value(value)
    return args, overrides


def experiment(args: argparse.Namespace, overrides: dict[str, Any]) -> Experiment:
    """The validated experiment of `--config`, `--name` and the overrides, weakest first: defaults, file, flags.

    Paths in it become absolute ones, from here: Ray's workers run in folders of their own.
    """
    values = dict(overrides)
    if args.name:
        values["name"] = args.name
    if args.config:
        found = config.load(args.config, values)
    else:
        found = config.from_dict(config.override({}, values), source="command line")
    paths = {"dataset.root": found.dataset.root, "autoencoder.path": found.autoencoder.path}
    return config.replace(
        found, **{name: str(Path(path).expanduser().resolve()) for name, path in paths.items() if path is not None}
    )


def with_overrides(base: Experiment, overrides: dict[str, Any]) -> Experiment:
    """An experiment read from its folder, with the command line's changes."""
    return config.from_dict(config.override(config.to_dict(base), overrides), source="command line")


def storage_root(args: argparse.Namespace) -> Path:
    """`--storage`, else $RAYPIPE_STORAGE, else ~/raypipe; absolute, since Ray jobs run in another folder."""
    text = args.storage or os.environ.get("RAYPIPE_STORAGE") or "~/raypipe"
    url = urlparse(text)
    if url.scheme == "file":
        text = unquote(url.path)
    elif len(url.scheme) > 1:
        raise ConfigError(f"--storage: must be a folder that all nodes see, not a {url.scheme}:// URI: {text!r}")
    path = Path(text).expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--storage: must be a folder, not a file: {str(path)!r}")
    return path


def positive(text: str) -> int:
    """argparse type: a whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {value}")
    return value


def run(main: Callable[[Sequence[str] | None], int], prog: str, argv: Sequence[str] | None = None) -> int:
    """Call a verb; bad input becomes one line on stderr and exit code 2, Ctrl-C a hint and 130."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return main(argv)
    except UserError as error:
        sys.stderr.write(f"{prog}: error: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted; the same command with --resume goes on\n")
        return INTERRUPTED


def _fields_help() -> str:
    """Every config field, as `--section.field VALUE`, with its default and meaning."""
    lines = ["any field of the config, as --section.field VALUE (a YAML value):"]
    for name, f in config.field_names():
        if name == "name":
            continue
        default = config.field_default(f)
        shown = "" if isinstance(default, dict) else f" (default: {default})"
        text = f"{f.metadata.get('help', '')}{shown}"
        lines += textwrap.wrap(f"  --{name:<32} {text}", width=118, subsequent_indent=" " * 37)
    return "\n".join(lines)
