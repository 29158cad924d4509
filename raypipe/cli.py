"""Shared code of the command-line programs: flags, dotted overrides, one-line errors, exit codes."""

import argparse
import difflib
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from raypipe import config
from raypipe.common.errors import UserError
from raypipe.common.interrupts import interrupts_kept, was_interrupted
from raypipe.common.places import Place, to_place
from raypipe.config import ConfigError, Experiment

BAD_INPUT = 2
"""Exit code for errors that the user can fix."""
INTERRUPTED = 130
"""Exit code after Ctrl-C."""
HELP_FORMAT = argparse.RawDescriptionHelpFormatter
"""Formatter of the help of commands whose description has paragraphs."""
FIELDS = (
    "Every config field is a flag, --section.field VALUE, where VALUE is YAML, such as 1e-3, true, null or [1, 2].\n"
    "The package raypipe.sde defines symbols such as K, s, u and alpha."
)
"""The help's introduction to the config fields."""
DAILY_FIELDS = (
    "dataset.root",
    "dataset.name",
    "dataset.image_size",
    "train.batch_size",
    "train.learning_rate",
    "search.minutes",
    "search.flow.trials",
    "search.max_concurrent",
    "search.gpus_per_trial",
    "evaluation.horizon",
)
"""The config fields that `--help` lists; `--help-all` lists all."""


class Parser(argparse.ArgumentParser):
    """ArgumentParser whose errors are a single line, without the usage text."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see --help\n")


class _HelpAll(argparse.Action):
    """Prints the help with all config fields, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        parser.epilog = f"{FIELDS} The fields are:\n{_fields_help(dict(config.field_names()))}"
        parser.print_help()
        parser.exit()


def experiment_parser(prog: str, description: str) -> Parser:
    """A parser with the flags that all commands share; its help ends with some config fields, or with all of them."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog=f"{FIELDS} --help-all lists them; some are:\n{_fields_help(DAILY_FIELDS)}",
        formatter_class=HELP_FORMAT,
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show this help with all config fields and exit")
    parser.add_argument("--config", metavar="FILE", help="YAML config of the experiment (default: the built-in demo)")
    add_storage(parser)
    parser.add_argument(
        "--name", metavar="NAME", help="name of the experiment and of its folder under the storage root"
    )
    return parser


def more_flags(parser: argparse.ArgumentParser) -> Any:
    """The group of the flags that are not of daily use, which the help lists after the others."""
    parser._optionals.title = "flags of daily use"
    return parser.add_argument_group("more flags")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add the flag that `storage_root` reads."""
    parser.add_argument(
        "--storage",
        metavar="DIR",
        help="storage root: folder for all experiments, accessible from all nodes, or for a single node the URI of a "
        "bucket, such as s3://bucket/raypipe (default: $RAYPIPE_STORAGE, else ~/raypipe)",
    )


def add_break_lock(parser: Any) -> None:
    """Add the flag that takes an experiment in a bucket over from a machine that has died."""
    parser.add_argument(
        "--break-lock",
        action="store_true",
        help="with --storage in a bucket: take the experiment over from a machine that has given no sign of life for a "
        "minute; waits until that is certain",
    )


def add_dry_run(parser: Any) -> None:
    """Add the flag of a command that only says what it would do."""
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print what would be done, how long it would take and what it needs, measured on a few steps; leaves "
        "nothing behind",
    )


def parse(parser: Parser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse a command line into the parser's own flags and the overrides `--section.field value`, by dotted name.

    Old names of fields are accepted; the overrides have the current ones.
    Exits with code 2 for an unknown flag, with the most similar known one, or a missing value.
    """
    args, rest = parser.parse_known_args(argv)
    known = dict(config.field_names())
    overrides: dict[str, Any] = {}
    while rest:
        flag, _, value = rest.pop(0).partition("=")
        name = config.current_name(flag.removeprefix("--"))
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
    """The validated experiment: the defaults, overridden by the `--config` file, `--name` and the overrides.

    Relative paths are made absolute, see `_absolute`.
    """
    values = dict(overrides)
    if args.name:
        values["name"] = args.name
    if args.config:
        found = config.load(args.config, values)
    else:
        found = config.from_dict(config.override({}, values), source="command line")
    return _absolute(found)


def with_overrides(base: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """A validated copy of a stored experiment with some fields replaced, by dotted name; raises ConfigError.

    Relative paths are made absolute, as `experiment` does.
    """
    return _absolute(config.from_dict(config.override(config.to_dict(base), overrides), source="command line"))


PATHS = (
    *("dataset.root", "dataset.cache", "autoencoder.path"),
    *("evaluation.i3d_weights", "evaluation.lpips_weights", "evaluation.vjepa_weights"),
)
"""Config fields that hold a path. train.flow holds the name of a model in the experiment."""


def _absolute(found: Experiment) -> Experiment:
    """The experiment with absolute paths, since Ray workers have other working directories. `~` in dataset.cache is
    left as it is, as it may be another folder on each node."""
    places = {name: to_place(path) for name in PATHS if (path := config.field_value(found, name)) is not None}
    local = {
        name: place
        for name, place in places.items()
        if isinstance(place, Path) and not (name == "dataset.cache" and str(place).startswith("~"))
    }
    return config.replace(found, **{name: str(path.expanduser().resolve()) for name, path in local.items()})


def storage_place(args: argparse.Namespace) -> Place:
    """`--storage`, else $RAYPIPE_STORAGE, else ~/raypipe: the URI of something remote, or an absolute path.

    Raises ConfigError for a path that is not a folder.
    """
    place = to_place(args.storage or os.environ.get("RAYPIPE_STORAGE") or "~/raypipe")
    if not isinstance(place, Path):
        return place
    path = place.expanduser().resolve()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--storage: must be a folder, not a file: {str(path)!r}")
    return path


def storage_root(args: argparse.Namespace) -> Path:
    """`storage_place` for a command that writes to a folder only. Raises ConfigError for a URI other than file://."""
    place = storage_place(args)
    if not isinstance(place, Path):
        scheme = place.partition("://")[0]
        raise ConfigError(f"--storage: must be a folder that all nodes can access, not the {scheme}:// URI")
    return place


def positive(text: str) -> int:
    """argparse type: a positive integer."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, not {value}")
    return value


def run(main: Callable[[Sequence[str] | None], int], prog: str, argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    A UserError is printed as one line on stderr and gives exit code 2. Ctrl-C gives 130 and a hint how to go on: the
    message of the KeyboardInterrupt, which names --resume once there is something to resume.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with interrupts_kept():
            return main(argv)
    except UserError as error:
        sys.stderr.write(f"{prog}: error: {' '.join(str(error).split())}\n")
        return BAD_INPUT
    except BaseException as error:
        if not was_interrupted(error):
            raise
        resume = str(error) if isinstance(error, KeyboardInterrupt) else ""
        sys.stderr.write(f"{prog}: interrupted; {resume or 'run the same command again'}\n")
        return INTERRUPTED


def _fields_help(names: Iterable[str]) -> str:
    """Help text of config fields, each with its default as YAML."""
    lines: list[str] = []
    defaults, known = Experiment(), dict(config.field_names())
    for name in names:
        if name == "name":
            continue
        default = config.field_value(defaults, name)
        text = known[name].metadata.get("help", "")
        if not isinstance(default, dict):
            text += f" (default: {default if isinstance(default, str) else json.dumps(default)})"
        lines += textwrap.wrap(f"  --{name:<32} {text}", width=118, subsequent_indent=" " * 37)
    return "\n".join(lines)
