"""The command `raypipe VERB ...`, which is the same as `python -m raypipe.VERB ...`; nothing is imported before a verb.

`raypipe convert` is `python -m raypipe.convert_to_h5`.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType
from typing import Any

from raypipe.common.errors import nearest
from raypipe.common.extras import need

BAD_INPUT = 2
"""Exit code for a verb that does not exist; that of `raypipe.cli`, which would be slow to import."""


@dataclass(frozen=True)
class Verb:
    """A command. module: name of the module in `raypipe` with `main` and `make_parser`. about: what it does."""

    module: str
    about: str


VERBS: Mapping[str, Verb] = MappingProxyType(
    {
        "convert": Verb("convert_to_h5", "pack videos into HDF5 shards"),
        "train": Verb("train", "train one network: a flow, denoiser, diffusion or joint network"),
        "tune": Verb("tune", "search one stage: tune flow, tune denoiser, tune diffusion or tune joint"),
        "evaluate": Verb("evaluate", "score the combinations of the best networks of a search, and keep the best"),
        "generate": Verb("generate", "predict what follows in a video"),
        "show": Verb("show", "how far a search is, and its best trials so far; --watch while it runs"),
        "checkpoint": Verb(
            "checkpoint.__main__", "import and export checkpoints of other programs, push a model to a hub"
        ),
    }
)


SHELLS = ("bash", "zsh", "tcsh")
"""Shells for which a completion can be printed."""
COMPLETION = "--print-completion"
PLACES = {"DIR": "DIRECTORY", "FILE": "FILE", "VIDEO": "FILE", "OUT": "FILE", "SHARDS": "DIRECTORY"}
"""Metavariables of flags that take a path, and what shtab calls such paths."""


def usage() -> str:
    """The help of the command."""
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.about}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: raypipe VERB ...",
            "",
            "Train and search neural-SDE video predictors, on one machine or on a Ray cluster.",
            "",
            *lines,
            "",
            "raypipe VERB --help lists the flags of a verb, and raypipe --version prints the version. The whole search",
            f"is python experiments/pipeline.py. raypipe --print-completion {'|'.join(SHELLS)} prints a script that",
            "completes verbs and flags in this shell.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code; 2, after one line on stderr, if there is no such verb."""
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0
    if name == "--version":
        sys.stdout.write(f"raypipe {version('raypipe')}\n")
        return 0
    if name == COMPLETION:
        return _print_completion(rest)
    if name not in VERBS:
        meant = nearest(name, [*VERBS, "--help", "--version", COMPLETION]) or f"; the verbs are {', '.join(VERBS)}"
        sys.stderr.write(f"raypipe: error: unknown verb {name!r}{meant}\n")
        return BAD_INPUT
    from raypipe import cli

    module = import_module(f"raypipe.{VERBS[name].module}")
    return cli.run(module.main, module.PROG, rest)


def _print_completion(argv: Sequence[str]) -> int:
    """Print the script that completes verbs and flags; 2, after one line on stderr, for an unknown shell."""
    if len(argv) != 1 or argv[0] not in SHELLS:
        sys.stderr.write(f"raypipe: error: argument {COMPLETION}: give one of {', '.join(SHELLS)}\n")
        return BAD_INPUT
    from raypipe import cli

    def show(shell: Sequence[str] | None) -> int:
        assert shell is not None
        shtab = need("shtab", "completion", f"raypipe {COMPLETION}")
        sys.stdout.write(shtab.complete(_whole_parser(shtab), shell[0]) + "\n")
        return 0

    return cli.run(show, "raypipe", argv)


def _whole_parser(shtab: Any) -> ArgumentParser:
    """One parser of all verbs, for shtab, with every field of the config as a flag of those that take them."""
    from raypipe import config, tune

    whole = ArgumentParser("raypipe")
    whole.add_argument("--version", action="store_true")
    whole.add_argument(COMPLETION, choices=SHELLS)
    verbs = whole.add_subparsers()
    for name, verb in VERBS.items():
        made: dict[str, tuple[Any, Any]]
        if name == "tune":  # its stages have parsers of their own
            stages = verbs.add_parser(name, help=verb.about).add_subparsers()
            made = {stage: (stages, tune.stage_parser(stage, stage)) for stage in config.COMPONENTS}
        else:
            made = {name: (verbs, import_module(f"raypipe.{verb.module}").make_parser())}
        for key, (under, parser) in made.items():
            for action in parser._actions:
                if action.metavar in PLACES:
                    action.complete = getattr(shtab, PLACES[action.metavar])
            joined = under.add_parser(key, parents=[parser], add_help=False, help=verb.about)
            if "--config" in joined._option_string_actions:
                for field in (field for field, _ in config.field_names() if field != "name"):  # which is a flag already
                    joined.add_argument(f"--{field}")
    return whole


if __name__ == "__main__":
    raise SystemExit(main())
