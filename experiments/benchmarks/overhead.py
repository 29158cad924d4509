"""Overhead of the search: `python experiments/benchmarks/overhead.py [--trials N]`.

Runs a search whose trials sleep for a second instead of training, and prints a JSON line:

ratio    fraction of the slot time (number of concurrent trials times duration) in which no trial ran
memory   resident memory of the driver in MiB, after a quarter of the trials and at the end
page     of the page of the search: CPU time of its writes as a fraction of the duration, and its size in MB
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml
from ray import tune

from raypipe import cli, config
from raypipe.distributed.connection import start_ray
from raypipe.report.live_page import live_page
from raypipe.search import records
from raypipe.search.stage import Stage
from raypipe.search.tuner import concurrent_trials, run_search
from raypipe.training.monitor import METRICS, log_folder
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace

MIB = 2**20
LINES = 30
"""Lines in the log of a trial, as many as one with three rungs writes."""


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
        folder = self._stage.workspace.run("flow", self._config["trial"])
        log_folder(folder).mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"step": step, "loss": 1 / (step + 1)}) for step in range(LINES)]
        (log_folder(folder) / METRICS).write_text("".join(f"{line}\n" for line in lines))
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
        stage.workspace.folder.mkdir()
        (stage.workspace.folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(experiment)))
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
            with hold(stage.workspace), live_page(stage.workspace) as page:
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
            "page": {
                "share": round(page.seconds / economy.seconds, 4),
                "megabytes": round(page.path.stat().st_size / 1e6, 3),
            },
            "memory": [round(early[0], 1) if early else None, round(resident(), 1)],
        }
    sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
