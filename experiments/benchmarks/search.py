"""Compare search methods on recorded learning curves: `python experiments/benchmarks/search.py [--seeds 30]`.

Simulates searches of the flow stage (`replay.py`) on the grid that `record.py` recorded, all with the same budget of
training steps over all trials. Prints four JSON lines:

search     the default search (TPE with ASHA), compared with random search without a scheduler. ratio: ratio of the mean
           best objectives; the objective of a trial is averaged over the recorded training seeds, so that a lucky seed
           gives no advantage. steps_ratio: fraction of the budget after which the default search is as good as random
           search at its end. sd, se: over the seeds of the searches.
sampler    each sampler with ASHA.
scheduler  each scheduler with TPE.
workers    duration on the simulated clock by number of workers; 10% of the trials are three times slower, and 2% of the
           rungs fail, which ends their trial.

`--plot FILE` plots the mean best objective against training steps.
"""

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from replay import RECORDED, Curves, Run, Setting, replay

from raypipe import cli
from raypipe.common.files import atomic_path
from raypipe.config import ConfigError, Experiment

TRIALS = 20
"""Budget of a search, in trainings of full length."""
RANDOM = {"sampler": "random", "scheduler": "none"}
KEPT = Experiment().search.reduction_factor
"""ASHA continues one in this many trials after each rung."""
DEFAULT: dict[str, str] = {}
SAMPLERS = ("tpe", "gp", "nsga2", "random")
SCHEDULERS = ("asha", "halving", "median", "none")
WORKERS = (1, 4, 16, 64)
FAULTS = {"stragglers": 0.1, "failures": 0.02}


def runs(curves: Curves, seeds: int, steps: int, **settings: Any) -> list[Run]:
    """One search per seed, with about as many trials as the budget `steps` allows."""
    rungs = curves.rungs[-Setting.rungs :]
    trials = _trials(steps // rungs[-1], rungs, str(settings.get("scheduler", "asha")))
    return [replay(curves, Setting(steps=steps, trials=trials, seed=seed, **settings)) for seed in range(seeds)]


def _trials(whole: int, rungs: Sequence[int], scheduler: str) -> int:
    """Number of trials that need the steps of `whole` full trainings, if the scheduler stops trials at the rungs."""
    if scheduler not in ("asha", "halving"):
        return whole
    shares = [(b - a) / KEPT**i for i, (a, b) in enumerate(zip([0, *rungs], rungs, strict=False))]
    return int(whole * rungs[-1] / sum(shares))


def mean_best(found: Sequence[Run], steps: float) -> float:
    """Mean over searches of the best expected objective after this many training steps."""
    return statistics.mean(run.at(steps) for run in found)


def steps_to(found: Sequence[Run], target: float, limit: int) -> int | None:
    """Training steps after which the mean best objective reaches the target; None: not within `limit` steps."""
    known = sorted({at for run in found for at, *_ in run.best if at <= limit})
    return next((at for at in known if mean_best(found, at) <= target), None)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    sd = statistics.stdev(values) if len(values) > 1 else math.nan
    return {"mean": round(statistics.mean(values), 4), "sd": round(sd, 4)}


def against_random(curves: Curves, seeds: int, steps: int) -> dict[str, Any]:
    """The line `search`."""
    ours, theirs = runs(curves, seeds, steps, **DEFAULT), runs(curves, seeds, steps, **RANDOM)
    best = [[run.at(steps) for run in found] for found in (ours, theirs)]
    taken = steps_to(ours, mean_best(theirs, steps), steps)
    gaps = [a - b for a, b in zip(*best, strict=True)]
    return {
        "name": "search",
        "seeds": seeds,
        "ratio": round(statistics.mean(best[0]) / statistics.mean(best[1]), 4),
        "steps_ratio": None if taken is None else round(taken / steps, 3),
        "against": "random search without a scheduler, at the same training steps over all trials",
        "asked": {"ratio": "below 1", "steps_ratio": "at most 0.5"},
        "steps": steps,
        "best": spread(best[0]),
        "random_best": spread(best[1]),
        "difference": {**spread(gaps), "se": round(statistics.stdev(gaps) / math.sqrt(seeds), 4)},
        "least_of_the_grid": round(curves.best(), 4),
        "observed_ratio": round(_observed(ours) / _observed(theirs), 4),
        "trials": round(statistics.mean(run.trials for run in ours), 1),
        "configurations": curves.configurations,
    }


def _observed(found: Sequence[Run]) -> float:
    """Mean best objective that the searches observed, from a single training seed per trial."""
    return statistics.mean(run.best[-1][2] for run in found)


def compared(curves: Curves, seeds: int, steps: int, kind: str, names: Sequence[str]) -> dict[str, Any]:
    """The lines `sampler` and `scheduler`: mean best objective after a quarter, half and all of the steps."""
    line: dict[str, Any] = {"name": kind, "seeds": seeds, "steps": steps}
    for name in names:
        found = runs(curves, seeds, steps, **{kind: name})
        line[name] = {
            **spread([run.at(steps) for run in found]),
            "quarter": _finite(mean_best(found, steps / 4)),
            "half": _finite(mean_best(found, steps / 2)),
            "trials": round(statistics.mean(run.trials for run in found), 1),
        }
    return line


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def workers(curves: Curves, seeds: int, steps: int) -> dict[str, Any]:
    """The line `workers`."""
    line: dict[str, Any] = {"name": "workers", "seeds": seeds, "steps": steps, **FAULTS}
    alone = 0.0
    for count in WORKERS:
        found = runs(curves, seeds, steps, workers=count, **FAULTS)
        seconds = statistics.mean(run.seconds for run in found)
        alone = alone or seconds
        line[str(count)] = {
            "seconds": round(seconds, 1),
            "speedup": round(alone / seconds, 2),
            "best": spread([run.at(math.inf) for run in found]),
            "failed": round(statistics.mean(run.failed for run in found), 1),
        }
    return line


def draw(path: Path, lines: Mapping[str, Sequence[Run]], steps: int, floor: float) -> None:
    """Plot the mean best objective and its standard error against training steps. floor: lowest of the grid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes: Any = figure.add_subplot()
    grid = np.linspace(steps / 40, steps, 400)
    for name, found in lines.items():
        values = np.array([[run.at(at) for at in grid] for run in found])
        known = np.isfinite(values).all(0)
        mean, error = values[:, known].mean(0), values[:, known].std(0) / math.sqrt(len(found))
        (line,) = axes.plot(grid[known], mean, label=name)
        axes.fill_between(grid[known], mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.axhline(floor, color="0.6", linewidth=1, linestyle=":", label="lowest of the grid")
    axes.set(xlabel="training steps over all trials", ylabel="mean best objective (CRPS ratio)", xlim=(0, steps))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(prog="search.py", description="Compare searches on recorded learning curves.")
    parser.add_argument(
        "--seeds", type=cli.positive, default=30, metavar="N", help="searches of each kind (default: 30)"
    )
    parser.add_argument(
        "--recorded",
        type=Path,
        default=RECORDED,
        metavar="FILE",
        help="file that record.py wrote (default: the one in tests/)",
    )
    parser.add_argument("--only", choices=("search", "sampler", "scheduler", "workers"), help="print only this line")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the mean best objective against training steps (PNG)"
    )
    args = parser.parse_args(argv)
    if not args.recorded.is_file():
        raise ConfigError(
            f"--recorded: no file {args.recorded}; create it with python experiments/benchmarks/record.py"
        )
    curves = Curves(args.recorded)
    steps = TRIALS * curves.rungs[-1]
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "search": lambda: against_random(curves, args.seeds, steps),
        "sampler": lambda: compared(curves, args.seeds, steps, "sampler", SAMPLERS),
        "scheduler": lambda: compared(curves, args.seeds, steps, "scheduler", SCHEDULERS),
        "workers": lambda: workers(curves, args.seeds, steps),
    }
    for name, make in makers.items():
        if args.only in (None, name):
            sys.stdout.write(json.dumps(make()) + "\n")
            sys.stdout.flush()
    if args.plot is not None:
        lines = {"TPE, ASHA": DEFAULT, "random, ASHA": {"sampler": "random"}, "random": RANDOM}
        draw(args.plot, {n: runs(curves, args.seeds, steps, **s) for n, s in lines.items()}, steps, curves.best())
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "search.py"))
