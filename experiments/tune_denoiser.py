"""Search the denoiser stage: `python experiments/tune_denoiser.py [--config C] [--trials N] [--resume]`."""

from functools import partial

from raypipe import cli
from raypipe.tune import search

if __name__ == "__main__":
    raise SystemExit(cli.run(partial(search, "denoiser"), "tune_denoiser.py"))
