"""Pack videos into shards: `python -m raypipe.convert_to_h5 --data_dir D --out_dir O --image_size 64`.

D holds train/, val/ and test/ (or some of them), each with video files, folders of frames, or both.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from raypipe.data.packing import INDEX, PATTERN, ShardWriter
from raypipe.data.shards import open_shards
from raypipe.data.videos import Frames, Source, find_clips, read_source

PROG = "raypipe.convert_to_h5"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Bad:
    """A source that could not be read, and why."""

    source: Source
    reason: str


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=f"python -m {PROG}", description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--data_dir", "--data-dir", type=Path, required=True, help="folder with train/ val/ test/")
    parser.add_argument("--out_dir", "--out-dir", type=Path, required=True, help="folder that the shards go to")
    parser.add_argument("--image_size", "--image-size", type=int, default=64, help="side of the square frames, pixels")
    parser.add_argument("--extension", default="png", help="suffix of the images in folders of frames")
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="processes that read videos")
    parser.add_argument("--skip-bad", action="store_true", help="exit with 0 even if some sources are unreadable")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0; 1 if sources were unreadable; 2 for bad input; 130 when interrupted."""
    try:
        return _run(_parser().parse_args(argv))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{PROG}: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{PROG}: interrupted; the same command makes the unfinished splits anew\n")
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.image_size < 16 or args.image_size % 8:
        raise ValueError(f"--image_size: must be a multiple of 8 from 16 on, not {args.image_size}")
    if args.num_workers < 1:
        raise ValueError(f"--num-workers: must be at least 1, not {args.num_workers}")
    if not args.data_dir.is_dir():
        raise ValueError(f"{args.data_dir}: no such folder; --data_dir must hold train/, val/ or test/")
    splits = [split for split in SPLITS if (args.data_dir / split).is_dir()]
    if not splits:
        raise ValueError(f"{args.data_dir}: holds none of train/, val/, test/; move the clips into one of them")
    # Every split is looked at before the work begins, so that a mistake in the last one shows at once.
    sources = {split: find_clips(args.data_dir / split, args.extension) for split in splits}
    finished = [split for split in splits if _is_finished(args.out_dir / split, args.image_size)]
    bad: list[Bad] = []
    for split in splits:
        if split in finished:
            sys.stderr.write(f"{args.out_dir / split}: finished already, kept; delete it to make it anew\n")
        else:
            bad += _convert(sources[split], args.out_dir / split, args)
    _summarise(args.out_dir, splits, bad)
    return 1 if bad and not args.skip_bad else 0


def _is_finished(folder: Path, image_size: int) -> bool:
    if not (folder / INDEX).is_file():
        return False
    shape = open_shards(folder).frame_shape
    if shape != (image_size, image_size, 3):
        raise ValueError(f"{folder}: holds frames of {list(shape)}; choose another --out_dir or the same --image_size")
    return True


def _convert(sources: Sequence[Source], folder: Path, args: argparse.Namespace) -> list[Bad]:
    """Write one split; gives the sources that were left out. Nothing is written if all of them are bad."""
    bad: list[Bad] = []
    results = _read_all(sources, args.image_size, args.extension, min(args.num_workers, len(sources)))
    with tqdm(total=len(sources), desc=folder.name, unit="clip", file=sys.stderr) as bar:
        clips = _good(zip(sources, results, strict=True), bad, bar)
        first = next(clips, None)
        if first is None:
            return bad
        with ShardWriter(folder) as writer:
            writer.add(first[0].name, first[1], source=first[0].path.name)
            for source, frames in clips:
                writer.add(source.name, frames, source=source.path.name)
    return bad


def _good(
    results: Iterator[tuple[Source, Frames | str]], bad: list[Bad], bar: tqdm[NoReturn]
) -> Iterator[tuple[Source, Frames]]:
    for source, result in results:
        bar.update()
        if isinstance(result, str):
            bad.append(Bad(source, result))
        else:
            yield source, result


def _read_all(sources: Sequence[Source], size: int, extension: str, workers: int) -> Iterator[Frames | str]:
    """The frames of each source, or the reason why not, in the order of the sources."""
    if workers == 1:
        for source in sources:
            yield _read(source, size, extension)
        return
    # `spawn`, because forking a process that has threads (tqdm, FFmpeg) may deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupts)
    try:
        # A bounded queue: finished clips that wait for a slow one before them must not fill the memory.
        queue: deque[Future[Frames | str]] = deque()
        for source in sources:
            queue.append(pool.submit(_read, source, size, extension))
            if len(queue) > 2 * workers:
                yield queue.popleft().result()
        while queue:
            yield queue.popleft().result()
    except BrokenProcessPool:
        raise ValueError("--num-workers: a reading process died, out of memory perhaps; try fewer") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches every process of the terminal; only the parent acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read(source: Source, size: int, extension: str) -> Frames | str:
    try:
        return read_source(source, size, extension)
    except ValueError as error:
        return str(error)


def _summarise(out_dir: Path, splits: Sequence[str], bad: Sequence[Bad]) -> None:
    made = [split for split in splits if (out_dir / split / INDEX).is_file()]
    lines = [f"{'split':<8}{'clips':>8}{'frames':>10}{'MB':>10}"]
    for split in made:
        shards = open_shards(out_dir / split)
        size = sum(path.stat().st_size for path in (out_dir / split).glob(PATTERN)) / 1e6
        lines.append(f"{split:<8}{len(shards):>8}{shards.lengths.sum():>10}{size:>10.1f}")
    sys.stdout.write("\n".join(lines) + "\n")
    if bad:
        sys.stderr.write(f"{len(bad)} unreadable, left out:\n")
        sys.stderr.writelines(f"  {item.reason}\n" for item in bad)
    absent = [split for split in SPLITS if split not in made]
    if absent:
        sys.stderr.write(f"without {', '.join(absent)}: training needs train and val, evaluation needs test\n")
    name = re.sub(r"[^\w.-]", "_", out_dir.resolve().name) or "videos"
    size = open_shards(out_dir / made[0]).frame_shape[0] if made else 64
    flags = f"--dataset.root {out_dir} --dataset.name {name}" + ("" if size == 64 else f" --dataset.image_size {size}")
    sys.stdout.write(f"\nnext: python -m raypipe.train --run-name f-01-nll {flags}\n")


if __name__ == "__main__":
    sys.exit(main())
