"""Overhead of the search: `python experiments/benchmarks/overhead.py [--trials N]`.

Runs a search whose trials sleep for a second instead of training, and prints a JSON line:

ratio    fraction of the slot time (number of concurrent trials times duration) in which no trial ran
memory   resident memory of the driver in MiB, after a quarter of the trials and at the end
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ray import tune

from raypipe import cli, config
from raypipe.distributed.connection import start_ray
from raypipe.search import records
from raypipe.search.stage import Stage
from raypipe.search.tuner import concurrent_trials, run_search
from raypipe.workspace.layout import Workspace

MIB = 2**20


class Sleeper(tune.Trainable):
    """Replaces a trial: sleeps for a second, then reports an objective that depends on the noise level."""

    def setup(self, config: dict[str, Any], stage: Stage | None = None) -> None:
        assert stage is not None
        self._stage = stage
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        time.sleep(1)
        noise = self._config["values"]["train.noise_std"]
        return {
            "objective": (noise - 0.1) ** 2,
            "train_step": self._stage.rungs[-1],
            "failure": None,
            "halt": None,
            "seconds": 1.0,
            "done": True,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """A sleeper has no state to save."""


def resident() -> float:
    """Resident memory of this process in MiB. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MIB


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=cli.positive, default=200, metavar="N", help="number of trials (default: 200)")
    trials = parser.parse_args().trials
    with tempfile.TemporaryDirectory() as folder:
        experiment = config.replace(config.Experiment(), **{"search.flow.trials": trials, "search.rungs": 1})
        stage = Stage(experiment, Workspace(Path(folder), "overhead"), "flow")
        start_ray()
        early: list[float] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.5):
                if len(records.read_rows(stage.workspace.trials)) >= trials // 4:
                    early.append(resident())
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            economy = run_search(stage, trainable=Sleeper)
        finally:
            over.set()
            watcher.join()
        assert economy is not None
        line = {
            "name": "overhead",
            "ratio": round(economy.outside, 3),
            "against": "no time outside the trials",
            "at_most": 0.2,
            "trials": economy.trials,
            "places": concurrent_trials(experiment),
            "seconds": round(economy.seconds, 1),
            "trials_a_minute": round(economy.trials_a_minute, 1),
            "memory": [round(early[0], 1) if early else None, round(resident(), 1)],
        }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
