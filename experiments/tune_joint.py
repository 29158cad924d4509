"""Search the joint stage: `python experiments/tune_joint.py [--config C] [--trials N] [--resume]`."""

from functools import partial

from raypipe import cli
from raypipe.tune import search

if __name__ == "__main__":
    raise SystemExit(cli.run(partial(search, "joint"), "tune_joint.py"))
