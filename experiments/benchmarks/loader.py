"""How fast training gets its windows: `python experiments/benchmarks/loader.py [--clips N] [--quick] [--only NAME]`.

Prints a JSON line for each comparison:

windows     training windows from packed frames, against the published layout and loader, with one and two processes
latents     windows of latents, sampled and made tensors or read alone, against numpy memmap of the same bytes; also
            against the mapped bytes as a plain array, whose slices are cheaper than a memmap's
conversion  frames converted, against the published way (conversion.py)
growth      opening, memory and windows with 100, 1,000 and 10,000 clips, against the first of them

Every rate is the best of several repeats in which both sides take turns. Files are in the page cache for both, and
both are warmed up; ours has then verified the checksum of every clip, which it does once a process.
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
FRAMES, SIZE = 120, 64
LATENT = (4, 8, 8)
PARTS = ("windows", "latents", "conversion", "growth")


def main() -> None:
    parser = argparse.ArgumentParser(description="The data path against its baselines, as JSON lines.")
    parser.add_argument("--clips", type=cli.positive, metavar="N", help="clips to read (default: 200; 6 with --quick)")
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it runs, not how fast")
    parser.add_argument("--only", choices=PARTS, help="one comparison instead of all")
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
    """A line of the output; ours and baseline in windows a second."""
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
    """The shortest seconds of each side; they take turns."""
    turns = [[side() for side in sides] for _ in range(repeats)]
    return [min(times) for times in zip(*turns, strict=True)]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# ---- frames


def windows(folder: Path, clips: int, count: int, repeats: int) -> None:
    """Windows as uint8 batches in memory; the published loader would also convert them to float.

    A turn of the baseline reads `count` windows, one of ours as many as take as long: on a busy machine a turn of
    milliseconds would slip between the turns of others, and one of seconds would not.
    """
    packed, published = folder / "packed", folder / "published"
    content = np.stack(list(simulated(clips)))
    with ShardWriter(packed) as writer:
        for i, clip in enumerate(content):
            writer.add(f"clip_{i:05d}", clip)
    for first in range(0, clips, 100):
        write_published(published / f"shard_{first // 100 + 1:04d}.hdf5", content[first : first + 100])
    dataset: Any = PublishedWindows(published, count, WINDOW)
    for processes in (1, 2):
        loader = DataLoader(dataset, BATCH, num_workers=processes, persistent_workers=True)
        with Ranks(packed, processes, count // BATCH) as ranks:
            rounds = max(1, round(exhaust(loader) / best(2, ranks.turn)[0]))  # which warms both up, too
            ours, baseline = best(repeats, partial(ranks.turn, rounds), partial(exhaust, loader))
        show(
            "windows",
            rounds * count / ours,
            count / baseline,
            "one lzf dataset a frame, file opened for every sample, 40 frames read to use 5 (DataLoader)",
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
    with terminal.progress_bar("simulate clips", clips, "clip", leave=False) as bar:
        for i in range(clips):
            yield make_clip(np.random.default_rng([0, i]), FRAMES, SIZE, 0.02)
            bar.update()


def exhaust(loader: Any) -> float:
    """Seconds of an epoch."""
    return seconds(lambda: deque(loader, maxlen=0))


def batches(shards: Shards, rank: int = 0, world_size: int = 1) -> WindowBatches:
    """As a training reads them."""
    count = len(WindowIndex(shards.lengths, WINDOW))
    return WindowBatches(shards, WINDOW, 1, Sampler(count, BATCH, 0, rank, world_size))


class Ranks:
    """The processes of a training without the network: each reads its part of every batch.

    DataLoader's workers are forked too, and both stay from turn to turn.
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
        """Seconds from the word to begin until the last rank has all its batches, `rounds` times `steps`."""
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
        shards.clip(i)  # checksums
    mine = batches(shards, rank, world_size)
    step = 0
    while rounds := pipe.recv():
        for _ in range(rounds * steps):
            mine.batch(step)
            step += 1
        pipe.send(step)


# ---- latents


def latents(folder: Path, clips: int, repeats: int) -> None:
    """Every window once: the same windows in the same order on both sides."""
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
    """In a process of its own: those that it starts import what it imports, which should not be torch."""
    script = Path(__file__).with_name("conversion.py")
    subprocess.run([sys.executable, script, "--clips", str(clips), "--repeats", str(repeats)], check=True)


def growth(folder: Path, sizes: tuple[int, ...], quick: bool) -> None:
    """Clips of 12 frames of 8x8, each size opened and read by a fresh process."""
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
    """In a fresh process: seconds and resident memory, beyond what it had before."""
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
    """Resident memory of this process in MiB, mapped files included (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


if __name__ == "__main__":
    main()
