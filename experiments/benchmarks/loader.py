"""Speed of the data path: `python experiments/benchmarks/loader.py [--clips N] [--quick] [--only NAME]`.

Prints a JSON line for each comparison:

windows     training windows of frames from packed shards, compared with the reference layout and the reference code's
            loader, with one and two processes
latents     training windows of latents, as tensors or only read, compared with a numpy memmap of the same bytes, and
            with a plain array over the mapped bytes, which is cheaper to slice than a memmap
conversion  converted frames, compared with the reference code (conversion.py)
growth      time to open, memory and windows for 100, 1,000 and 10,000 clips, compared with 100

Each rate is the best of several repeats, in which both sides alternate after a warm-up. All files are in the page
cache. The checksum of each clip is verified once per process, so in our case during the warm-up.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from published_layout import PublishedWindows, write_published
from torch.utils.data import DataLoader

from raypipe import cli
from raypipe.common import terminal
from raypipe.data.batches import WindowBatches
from raypipe.data.demo import make_clip
from raypipe.data.shards import Shards, ShardWriter, open_shards
from raypipe.data.windows import Sampler, WindowIndex

WINDOW, BATCH = 5, 16
"""Frames of a window, and windows of a batch."""
FRAMES, SIZE = 120, 64
"""Frames of a clip, and their height and width."""
LATENT = (4, 8, 8)
"""Shape of a latent, [C, h, w]."""
PARTS = ("windows", "latents", "conversion", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the data path with its baselines; prints JSON lines.")
    parser.add_argument(
        "--clips", type=cli.positive, metavar="N", help="number of clips (default: 200; 6 with --quick)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to test the script; the rates mean nothing")
    parser.add_argument("--only", choices=PARTS, help="run only this comparison")
    args = parser.parse_args()
    clips = args.clips or (6 if args.quick else 200)
    repeats = 1 if args.quick else 5
    parts: dict[str, Callable[[Path], None]] = {
        "windows": lambda folder: windows(folder, clips, 64 if args.quick else 400, repeats),
        "latents": lambda folder: latents(folder, clips, repeats),
        "conversion": lambda folder: conversion(2 if args.quick else 300, 1 if args.quick else 2),
        "growth": lambda folder: growth(folder, (10, 20) if args.quick else (100, 1000, 10000), args.quick),
    }
    for name in [args.only] if args.only else PARTS:
        with tempfile.TemporaryDirectory() as folder:
            parts[name](Path(folder))


def show(name: str, ours: float, baseline: float, against: str, least: float | None, **more: Any) -> None:
    """Print a line. ours, baseline: windows per second. least: ratio to reach; None: no target."""
    line = {
        "name": name,
        "ratio": round(ours / baseline, 3),
        **({} if least is None else {"at_least": least}),
        "against": against,
        "windows_per_second": round(ours, 1),
        "baseline_windows_per_second": round(baseline, 1),
        **more,
    }
    terminal.say(json.dumps(line))


def best(repeats: int, *sides: Callable[[], float]) -> list[float]:
    """The shortest time of each side in seconds. The sides alternate."""
    turns = [[side() for side in sides] for _ in range(repeats)]
    return [min(times) for times in zip(*turns, strict=True)]


def seconds(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- frames


def windows(folder: Path, clips: int, count: int, repeats: int) -> None:
    """Compare windows as uint8 batches in memory, without the conversion to float of the reference code.

    The baseline reads `count` windows per repeat. Ours reads as many as take about the same time, because on a busy
    machine a measurement of milliseconds would often be undisturbed and one of seconds never.
    """
    packed, reference = folder / "packed", folder / "reference"
    content = np.stack(list(simulated(clips)))
    with ShardWriter(packed) as writer:
        for i, clip in enumerate(content):
            writer.add(f"clip_{i:05d}", clip)
    for first in range(0, clips, 100):
        write_published(reference / f"shard_{first // 100 + 1:04d}.hdf5", content[first : first + 100])
    dataset: Any = PublishedWindows(reference, count, WINDOW)
    for processes in (1, 2):
        loader = DataLoader(dataset, BATCH, num_workers=processes, persistent_workers=True)
        with Ranks(packed, processes, count // BATCH) as ranks:
            rounds = max(1, round(exhaust(loader) / best(2, ranks.turn)[0]))  # also the warm-up of both
            ours, baseline = best(repeats, partial(ranks.turn, rounds), partial(exhaust, loader))
        show(
            "windows",
            rounds * count / ours,
            count / baseline,
            "one lzf dataset per frame, file opened for every sample, 40 frames read to use 5 (DataLoader)",
            15.0,
            processes=processes,
            window=[WINDOW, SIZE, SIZE, 3],
            batch=BATCH,
            clips=[clips, FRAMES],
            windows=rounds * count,
            baseline_windows=count,
            repeats=repeats,
        )


def simulated(clips: int) -> Iterator[NDArray[np.uint8]]:
    """Clips of the demo dataset, uint8 [FRAMES, SIZE, SIZE, 3]."""
    with terminal.progress_bar("simulate clips", clips, "clip", leave=False) as bar:
        for i in range(clips):
            yield make_clip(np.random.default_rng([0, i]), FRAMES, SIZE, 0.02)
            bar.update()


def exhaust(loader: Any) -> float:
    """Seconds of an epoch of a DataLoader."""
    return seconds(lambda: deque(loader, maxlen=0))


def batches(shards: Shards, rank: int = 0, world_size: int = 1) -> WindowBatches:
    """The batches that a training with `world_size` ranks reads on this rank."""
    count = len(WindowIndex(shards.lengths, WINDOW))
    return WindowBatches(shards, WINDOW, 1, Sampler(count, BATCH, 0, rank, world_size))


class Ranks:
    """Processes that read what the ranks of a training read: each its part of every batch.

    Like the workers of the DataLoader, they are forked once and stay alive between repeats.
    """

    def __init__(self, folder: Path, processes: int, steps: int) -> None:
        context: Any = multiprocessing.get_context("fork")
        self._pipes: list[Any] = []
        self._children: list[Any] = []
        for rank in range(processes):
            mine, theirs = context.Pipe()
            child = context.Process(target=_rank, args=(folder, rank, processes, steps, theirs), daemon=True)
            child.start()
            self._pipes.append(mine)
            self._children.append(child)

    def turn(self, rounds: int = 1) -> float:
        """Seconds until all ranks have read `rounds * steps` batches."""
        began = time.perf_counter()
        for pipe in self._pipes:
            pipe.send(rounds)
        for pipe in self._pipes:
            pipe.recv()
        return time.perf_counter() - began

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.send(0)
        for child in self._children:
            child.join()


def _rank(folder: Path, rank: int, world_size: int, steps: int, pipe: Any) -> None:
    shards = open_shards(folder)
    for i in range(len(shards)):
        shards.clip(i)  # verifies the checksums
    mine = batches(shards, rank, world_size)
    step = 0
    while rounds := pipe.recv():
        for _ in range(rounds * steps):
            mine.batch(step)
            step += 1
        pipe.send(step)


# ---- latents


def latents(folder: Path, clips: int, repeats: int) -> None:
    """Compare windows of latents. Both sides read every window once, in the same order."""
    rng = np.random.default_rng(0)
    content = rng.standard_normal((clips, FRAMES, *LATENT), np.float32).astype(np.float16)
    with ShardWriter(folder / "packed", key="latents") as writer:
        for i, clip in enumerate(content):
            writer.add(f"clip_{i:05d}", clip)
    np.save(folder / "plain.npy", content.reshape(-1, *LATENT))
    plain = np.load(folder / "plain.npy", mmap_mode="r")
    shards = open_shards(folder / "packed")
    ours = batches(shards)
    steps = ours.sampler.steps_per_epoch
    places = [ours.index.locate(ours.sampler.batch(step).windows) for step in range(steps)]
    rows = [(clip * FRAMES + start).tolist() for clip, start in places]

    def tensors() -> None:
        for step in range(steps):
            ours.batch(step)

    def read() -> None:
        for clip, start in places:
            shards.windows(clip, start, WINDOW)

    def memmap(plain: NDArray[np.float16]) -> None:
        for batch in rows:
            np.stack([plain[row : row + WINDOW] for row in batch])

    count = len(ours.index)
    sides = (tensors, read, partial(memmap, plain), partial(memmap, np.asarray(plain)))
    best(1, *(partial(seconds, side) for side in sides))  # warm up
    times = best(repeats, *(partial(seconds, side) for side in sides))
    made, copied, mapped, viewed = (count / taken for taken in times)
    common = {"processes": 1, "window": [WINDOW, *LATENT], "batch": BATCH, "clips": [clips, FRAMES], "windows": count}
    against = "numpy memmap, slices stacked"
    show("latents", made, mapped, against, 0.5, **common, repeats=repeats)
    show("latents", made, viewed, f"{against}, as a plain array", None, **common, repeats=repeats)
    show("latents, read alone", copied, mapped, against, 0.5, **common, repeats=repeats)


# ---- conversion and growth


def conversion(clips: int, repeats: int) -> None:
    """Run conversion.py in a new process, so that the workers it forks or spawns do not import torch."""
    script = Path(__file__).with_name("conversion.py")
    subprocess.run([sys.executable, script, "--clips", str(clips), "--repeats", str(repeats)], check=True)


def growth(folder: Path, sizes: tuple[int, ...], quick: bool) -> None:
    """Compare datasets of different sizes, with clips of 12 frames of 8x8. A new process opens and reads each."""
    context = multiprocessing.get_context("spawn")
    first: float | None = None
    for clips in sizes:
        path = folder / str(clips)
        content = np.random.default_rng(clips).integers(0, 256, (12, 8, 8, 3), np.uint8)
        with ShardWriter(path) as writer:
            for i in range(clips):
                writer.add(f"clip_{i:05d}", content)
        with context.Pool(1) as pool:
            found = pool.apply(_measure, (path, 160 if quick else 20000))
        rate = found.pop("rate")
        first = first or rate
        against = f"the same with {sizes[0]} clips"
        show("growth", rate, first, against, None, processes=1, clips=[clips, 12], window=[WINDOW, 8, 8, 3], **found)


def _measure(folder: Path, count: int) -> dict[str, Any]:
    """Measure times in seconds, and the growth of this new process's resident memory, for a folder of shards."""
    before = resident()
    opening = seconds(lambda: open_shards(folder))
    shards = open_shards(folder)
    opened = resident()
    ours = batches(shards)
    epoch = seconds(lambda: deque(map(ours.batch, range(ours.sampler.steps_per_epoch)), maxlen=0))
    read = resident()
    steps = count // BATCH
    taken = best(5, lambda: seconds(lambda: deque(map(ours.batch, range(steps)), maxlen=0)))[0]
    return {
        "rate": steps * BATCH / taken,
        "open_seconds": round(opening, 4),
        "first_epoch_seconds": round(epoch, 3),
        "first_epoch_windows": len(ours.index),
        "process_mib": round(before, 1),
        "open_mib": round(opened - before, 1),
        "epoch_mib": round(read - before, 1),
    }


def resident() -> float:
    """Resident memory of this process in MiB, including mapped files. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


if __name__ == "__main__":
    main()
