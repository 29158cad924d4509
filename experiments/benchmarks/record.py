"""Record learning curves of a grid of flows, to replay searches on: `python experiments/benchmarks/record.py`.

Trains the demo's flow and scores it at all rungs, as a trial of a search does, for each combination of 10 noise levels
(including 0), 2 losses, 6 learning rates and 3 seeds: 360 trainings. Rows are written as they arrive; if interrupted,
the same command continues. The file is part of the tests, and `search.py` replays searches on it.
"""

import argparse
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raypipe import cli, config
from raypipe.common import terminal
from raypipe.common.cpus import cpu_count
from raypipe.common.files import atomic_path
from raypipe.distributed.connection import start_ray
from raypipe.distributed.prepare import prepare
from raypipe.search import records
from raypipe.search.stage import Stage
from raypipe.search.trial_run import ScorerCache, TrialRun
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import manifest

NOISE = (0.0, 0.01, 0.016, 0.025, 0.04, 0.063, 0.1, 0.16, 0.25, 0.4)
LOSSES = ("nll", "mse")
RATES = (3e-4, 6e-4, 1.2e-3, 2.4e-3, 4.8e-3, 9.6e-3)
SEEDS = (0, 1, 2)
RECIPE = {
    "name": "recorded",
    "search.flow.steps": 300,
    "search.rungs": 3,
    "evaluation.fit_windows": 8,
    "evaluation.multipliers": [0.3, 0.5, 0.8],
}
"""Half the steps of the demo's trials, and fewer windows for the fit: the grid takes an hour on two cores."""
RECORDED = Path(__file__).parents[2] / "tests" / "recorded" / "flow.parquet"


@dataclass(frozen=True)
class Cell:
    """The settings of a training of the grid."""

    noise_std: float
    loss: str
    learning_rate: float
    seed: int

    @property
    def key(self) -> tuple[float, str, float, int]:
        return (self.noise_std, self.loss, self.learning_rate, self.seed)


def curve(stage: Stage, cell: Cell) -> list[records.Row]:
    """Train a cell and return its rows, one per rung. `seconds`: time since the start of the training."""
    torch.set_num_threads(1)
    name = f"cell-{os.getpid()}"
    values = {
        "train.noise_std": cell.noise_std,
        "train.loss": cell.loss,
        "train.learning_rate": cell.learning_rate,
        "train.random_seed": cell.seed,
        "model.time_input": True,
    }
    shutil.rmtree(stage.workspace.run("flow", name), ignore_errors=True)
    shutil.rmtree(stage.workspace.run("flow", f"{name}.log"), ignore_errors=True)
    data = ExperimentData(stage.experiment, stage.workspace)
    trial, score = TrialRun(stage, data, name, values, reported=[]), ScorerCache(data)
    rows = []
    for _ in stage.rungs:
        result = trial.next_rung(score)
        rows.append(
            {
                "noise_std": cell.noise_std,
                "loss": cell.loss,
                "learning_rate": cell.learning_rate,
                "seed": cell.seed,
                "step": result.train_step,
                "objective": result.objective,
                "seconds": round(result.seconds, 2),
            }
        )
        if result.done:
            break
    return rows


def write(path: Path, rows: Sequence[records.Row], experiment: config.Experiment) -> None:
    """Write the rows, sorted, with the config and the manifest in the metadata of the file."""
    ordered = sorted(rows, key=lambda r: (r["seed"], r["loss"], r["noise_std"], r["learning_rate"], r["step"]))
    about = {"experiment": config.to_dict(experiment), "manifest": manifest(experiment)}
    table = pa.Table.from_pylist(ordered).replace_schema_metadata({"raypipe": json.dumps(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser("record.py", "Record the learning curves of a grid of flows.")
    parser.add_argument(
        "--out", type=Path, default=RECORDED, metavar="FILE", help="output file (default: the one in tests/)"
    )
    parser.add_argument(
        "--processes",
        type=cli.positive,
        default=cpu_count(),
        metavar="N",
        help="worker processes (default: all cores)",
    )
    parser.add_argument("--first", type=cli.positive, metavar="N", help=argparse.SUPPRESS)
    args, overrides = cli.parse(parser, argv)
    experiment = cli.experiment(args, {**RECIPE, **overrides})
    stage = Stage(experiment, Workspace(cli.storage_root(args), experiment.name), "flow")
    start_ray()
    prepare(experiment, stage.workspace)
    rows = records.read_rows(args.out)
    done = {(r["noise_std"], r["loss"], r["learning_rate"], r["seed"]) for r in rows}
    cells = [Cell(n, loss, rate, s) for s, n, loss, rate in itertools.product(SEEDS, NOISE, LOSSES, RATES)]
    left = [cell for cell in cells if cell.key not in done][: args.first]
    bar = terminal.progress_bar("record", len(cells), "curve", initial=len(done))
    with bar, ProcessPoolExecutor(args.processes, get_context("spawn")) as pool:
        futures = [pool.submit(curve, stage, cell) for cell in left]
        for future in as_completed(futures):
            rows += future.result()
            write(args.out, rows, experiment)
            bar.update(1)
    terminal.say(f"written  {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "record.py"))
