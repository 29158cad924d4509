"""Frames converted a second, against the published way: `python experiments/benchmarks/conversion.py [--clips N]`.

Both read the same folders of 64x64 PNG frames of simulated bodies, with one process and with two. Ours is the whole
command raypipe.convert_to_h5, the start of its processes included; the baseline (published_layout.py) gives each
process half of the folders and one shard. Files are in the page cache for both.
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Conversion against the published way, as JSON lines.")
    parser.add_argument("--clips", type=int, default=300, metavar="N", help=f"clips of {FRAMES} frames (default: 300)")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="the best of so many is taken (default: 2)")
    args = parser.parse_args()
    os.environ["RAY_ADDRESS"] = "local"  # processes of this machine, even if a Ray is up
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
    """Print one line. Ours and the baseline take turns, so that what else the machine does meets both."""
    ours, baseline = [], []
    for _ in range(repeats):
        ours.append(timed(lambda: convert(data, out, processes), out))
        baseline.append(timed(lambda: convert_baseline(data, out, processes), out))
    rates = frames / min(ours), frames / min(baseline)
    line = {
        "name": "conversion",
        "ratio": round(rates[0] / rates[1], 2),
        "at_least": LEAST,
        "against": "Pillow getdata into one lzf dataset a frame",
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
