"""Speed of conversion, compared with the reference code: `python experiments/benchmarks/conversion.py [--clips N]`.

Both convert the same folders of 64x64 PNG frames of simulated bodies, with one and with two processes. Ours is the
command raypipe.convert_to_h5, including the start of its processes. The baseline is the method of the reference code
(published_layout.py), where each process writes one shard. All files are in the page cache.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from published_layout import convert_published

from raypipe import convert_to_h5
from raypipe.data.demo import make_clip

SIZE, FRAMES = 64, 100
LEAST = 5.0
"""Ratio that the conversion should reach."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare the speed of conversion with the reference code's; prints JSON lines."
    )
    parser.add_argument("--clips", type=int, default=300, metavar="N", help=f"clips of {FRAMES} frames (default: 300)")
    parser.add_argument(
        "--repeats", type=int, default=2, metavar="N", help="repeats, of which the fastest counts (default: 2)"
    )
    args = parser.parse_args()
    os.environ["RAY_ADDRESS"] = "local"  # local processes, even if a Ray cluster is running
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        for i in range(args.clips):
            folder = data / "train" / f"clip_{i:05d}"
            folder.mkdir(parents=True)
            for t, frame in enumerate(make_clip(np.random.default_rng([1, i]), FRAMES, SIZE, 0.02)):
                Image.fromarray(frame).save(folder / f"{t}.png")
        for processes in (1, 2):
            compare(data, Path(name) / "out", processes, args.clips * FRAMES, args.repeats)


def compare(data: Path, out: Path, processes: int, frames: int, repeats: int) -> None:
    """Print the line for a number of processes. Ours and the baseline alternate, so that other load affects both."""
    ours, baseline = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: convert(data, out, processes), out))
        baseline.append(timed(lambda: convert_baseline(data, out, processes), out))
    rates = frames / min(ours), frames / min(baseline)
    line = {
        "name": "conversion",
        "ratio": round(rates[0] / rates[1], 2),
        "at_least": LEAST,
        "against": "Pillow getdata into one lzf dataset per frame",
        "frames_per_second": round(rates[0], 1),
        "baseline_frames_per_second": round(rates[1], 1),
        "processes": processes,
        "frames": frames,
        "frame_shape": [SIZE, SIZE, 3],
        "repeats": repeats,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def timed(work: Callable[[], None], out: Path) -> float:
    """Seconds that `work` takes. The output folder is deleted first."""
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def convert(data: Path, out: Path, processes: int) -> None:
    flags = ["--data_dir", data, "--out_dir", out, "--image_size", SIZE, "--num-workers", processes]
    with contextlib.redirect_stdout(sys.stderr):
        code = convert_to_h5.main([str(flag) for flag in flags])
    if code != 0:
        raise SystemExit(f"raypipe.convert_to_h5 ended with {code}")


def convert_baseline(data: Path, out: Path, processes: int) -> None:
    folders = sorted((data / "train").iterdir())
    tasks = [(out / f"shard_{i + 1:04d}.hdf5", folders[i::processes]) for i in range(processes)]
    if processes == 1:
        convert_published(tasks[0])
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(convert_published, tasks)


if __name__ == "__main__":
    main()
