"""The command `raypipe VERB ...`, which is the same as `python -m raypipe.VERB ...`; nothing is imported before a verb.

`raypipe convert` is `python -m raypipe.convert_to_h5`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from types import MappingProxyType

from raypipe.common.errors import nearest

BAD_INPUT = 2
"""Exit code for a verb that does not exist; that of `raypipe.cli`, which would be slow to import."""


@dataclass(frozen=True)
class Verb:
    """A command. module: name of the module in `raypipe` whose `main` takes its arguments. about: what it does."""

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
            "is python experiments/pipeline.py.",
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
    if name not in VERBS:
        meant = nearest(name, [*VERBS, "--help", "--version"]) or f"; the verbs are {', '.join(VERBS)}"
        sys.stderr.write(f"raypipe: error: unknown verb {name!r}{meant}\n")
        return BAD_INPUT
    from raypipe import cli

    module = import_module(f"raypipe.{VERBS[name].module}")
    return cli.run(module.main, module.PROG, rest)


if __name__ == "__main__":
    raise SystemExit(main())
