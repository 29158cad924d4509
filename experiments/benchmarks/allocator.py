"""Effect of glibc's malloc thresholds on CPU time: `python experiments/benchmarks/allocator.py`.

Times steps of the demo's flow, in training (16 windows) and in a forecast (64 states), on one thread. Fresh processes
alternate between glibc's default thresholds and those that raypipe sets for its Ray workers. Prints one JSON line for
training and one for the forecast:

ratio   CPU time of a step with glibc's thresholds / with those of raypipe
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch

from raypipe import cli, config
from raypipe.distributed.connection import ALLOCATOR
from raypipe.models.components import build_component

PARTS = ("training", "forecast")


def timed(step: Callable[[], object], count: int) -> float:
    """CPU seconds of a step, averaged over `count` steps after a warm-up."""
    for _ in range(5):
        step()
    begin = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - begin) / count


def measure(steps: int) -> dict[str, float]:
    """CPU seconds of a training step and of a forecast step in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flow = build_component("flow", config.Model(), 4)
    optimizer = torch.optim.AdamW(flow.parameters(), fused=True)
    x, u, target = torch.randn(16, 16, 8, 8), torch.rand(16), torch.randn(16, 4, 8, 8)
    states, times = torch.randn(64, 16, 8, 8), torch.rand(64)

    def train() -> None:
        optimizer.zero_grad()
        (flow(x, u) - target).square().mean().backward()
        optimizer.step()

    training = timed(train, steps)
    with torch.no_grad():
        return {"training": training, "forecast": timed(lambda: flow(states, times), steps)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--turns", type=cli.positive, default=3, metavar="T", help="processes with each setting (default: 3)"
    )
    parser.add_argument(
        "--steps", type=cli.positive, default=40, metavar="N", help="timed steps in each process (default: 40)"
    )
    parser.add_argument(
        "--one", action="store_true", help=argparse.SUPPRESS
    )  # used by the processes that this script starts
    args = parser.parse_args(argv)
    if args.one:
        sys.stdout.write(json.dumps(measure(args.steps)))
        return 0
    plain = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(args.turns):
        for kept, runs in found.items():
            command = [sys.executable, __file__, "--one", "--steps", str(args.steps)]
            environ = plain | (ALLOCATOR if kept else {})
            runs.append(json.loads(subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout))
    for part in PARTS:
        without, kept_ = (statistics.median(run[part] for run in found[kept]) for kept in (False, True))
        line = {
            "name": f"allocator, {part}",
            "ratio": round(without / kept_, 3),
            "against": "glibc's own thresholds",
            "milliseconds": [round(1e3 * without, 2), round(1e3 * kept_, 2)],
        }
        sys.stdout.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
