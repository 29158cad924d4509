"""Search the diffusion stage: `python experiments/tune_diffusion.py [--config C] [--trials N] [--resume]`."""

from functools import partial

from raypipe import cli
from raypipe.tune import search

if __name__ == "__main__":
    raise SystemExit(cli.run(partial(search, "diffusion"), "tune_diffusion.py"))
