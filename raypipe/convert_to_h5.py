"""Pack videos into HDF5 shards: `python -m raypipe.convert_to_h5 --data_dir D --out_dir O --image_size 64`."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.errors import UserError
from raypipe.common.interrupts import interrupts_kept, was_interrupted
from raypipe.common.locks import Timeout, file_lock
from raypipe.common.places import to_place
from raypipe.data.conversion import resuming
from raypipe.data.conversion.preview import Preview, preview
from raypipe.data.conversion.remote import check_target, publish, source_folder, target_folder
from raypipe.data.conversion.shard import LAYOUTS, Options, plan
from raypipe.data.conversion.splits import DATASETS, Division, Split, find_splits, split_folders
from raypipe.data.conversion.summary import Summary, summarize
from raypipe.data.splits import SPLITS
from raypipe.data.video.fitting import MODES
from raypipe.data.video.folders import readable
from raypipe.distributed.conversion import convert_all

PROG = "raypipe.convert_to_h5"
LOCK = ".convert.lock"
"""File in the output folder that is locked by a running conversion."""
ABOUT = """Pack videos, folders of frames, or existing shards into HDF5 shards.

--data_dir must hold train/, val/ and test/, or folders of similar names such as validation/ (at least one of them).
Each is searched at any depth for videos and animated or multi-page images (whatever FFmpeg or Pillow opens, with any
file extension), folders of images (one folder per clip), existing shards, and what holds several clips: tar files of
videos (WebDataset), .npy, .npz and zarr arrays [clips, T, H, W] or [clips, T, H, W, C] of uint8 or floats in [0, 1],
and Parquet and Arrow files with a column of videos (Hugging Face datasets). If the folder has no such subfolders, use
--split to divide its clips, or --dataset for a standard split; files of several clips may be named after the splits, as
train-0000.tar. Transparent pixels are shown over black. Everything that is left out or looks odd is named.

Both folders may be URIs, such as s3://bucket/videos: videos are first copied to ~/.cache/raypipe, and shards are made
there before they are written to the URI, by processes of this machine. The copies can be deleted afterwards.

To resume an interrupted run, give the same command again: finished shards are kept. A run with other options is
refused, and so is a finished split whose sources have changed. The output does not depend on the number of processes.

exit codes: 0 everything packed; 1 some videos or images were left out, as unreadable, as duplicates or beside clips, or
a split has no clip left; 2 bad input, nothing to pack, a full disk or a killed process; 130 interrupted."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=f"python -m {PROG}", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, more = parser.add_argument, cli.more_flags(parser)
    add("--data_dir", "--data-dir", type=to_place, required=True, metavar="DIR", help="folder or URI of the videos")
    add(
        "--out_dir",
        "--out-dir",
        type=to_place,
        required=True,
        metavar="DIR",
        help="output folder or URI; train/, val/ and test/ are created in it",
    )
    add(
        "--image_size",
        "--image-size",
        type=int,
        default=64,
        metavar="N",
        help="side of the square frames in pixels, a multiple of 8, at least 16 (default: 64)",
    )
    more.add_argument(
        "--fit",
        choices=MODES,
        default="crop",
        help="how a frame is made square: crop keeps the central square, pad keeps the whole frame and adds black bars"
        " (default: crop)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="only print how many clips and bytes would be converted, from a few of them; leaves nothing behind",
    )
    _add_selection(add, more.add_argument)
    _add_division(add, more.add_argument)
    return parser


def _add_selection(add: Callable[..., Any], more: Callable[..., Any]) -> None:
    """Flags that select frames and clips. add, more: add a flag of daily use, and one of the others."""
    add("--frame-stride", type=int, default=1, metavar="N", help="keep every N-th frame (default: 1)")
    add(
        "--fps",
        type=float,
        metavar="RATE",
        help="resample videos and animated images to RATE frames per second, before --frame-stride, by repeating or"
        " dropping frames (default: keep the frames of each)",
    )
    more(
        "--white",
        type=float,
        metavar="LEVEL",
        help="value that is shown white in grey images with 16 or 32 bits, such as 4095 if they hold 12 bits (default:"
        " 65535 for 16 bits; for 32 bits, the first of 1, 255 and 65535 that no value of the clip exceeds)",
    )
    add("--grey", action="store_true", help="convert to grayscale (stored as three equal channels)")
    more(
        "--min-length",
        type=int,
        default=1,
        metavar="N",
        help="leave out clips with fewer frames, counted after --frame-stride; they are listed but are no error"
        " (default: 1)",
    )
    more("--skip-bad", action="store_true", help="exit with 0 even if unreadable sources were left out")


def _add_division(add: Callable[..., Any], more: Callable[..., Any]) -> None:
    """Flags that say where the clips are and go, and how the run works. add, more: see `_add_selection`."""
    more("--extension", metavar="SUFFIX", help="file extension of the images in folders of frames (default: detected)")
    add(
        "--split",
        metavar="A,B,C",
        help="fractions of clips for train, val and test, such as 0.8,0.1,0.1, if --data_dir has no such subfolders."
        " If it has train/ but lacks others, they are taken out of train, as in 0.9,0.1,0."
        " Clips are assigned in the order of the SHA-256 of their names, so the same names always give the same splits;"
        " each split with a fraction above 0 gets at least one clip",
    )
    add(
        "--group-by",
        metavar="REGEX",
        help="with --split: keep the clips of one group in the same split. A clip's group is what the parentheses of"
        r" this regular expression match in its name, as in 'person(\d+)'",
    )
    add(
        "--dataset",
        choices=DATASETS,
        help="use the standard split of a dataset. kth: files named like person01_boxing_d1_uncomp.avi, in one or"
        " several folders, split by person: 1-16 train, 17-20 val, 21-25 test (the reference code's split, with val"
        " taken from its training persons)."
        " clevrer: folders video_train/, video_validation/, video_test/",
    )
    more(
        "--layout",
        choices=LAYOUTS,
        default="packed",
        metavar="{packed,reference}",
        help="packed is fast to read; reference is the layout of the reference code, one compressed dataset per frame"
        " (default: packed)",
    )
    more(
        "--num-workers",
        type=int,
        metavar="N",
        help="number of processes; 1 converts in the main process. If a Ray cluster is running (RAY_ADDRESS, or `ray"
        " start` on this machine), number of Ray tasks at a time; all nodes must then have access to both folders"
        " (default: the number of CPUs of the machine or cluster)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 (unreadable sources), 2 (bad input) or 130 (interrupted)."""
    try:
        with interrupts_kept():
            return _run(make_parser().parse_args(argv))
    except (UserError, OSError) as error:
        sys.stderr.write(f"{PROG}: error: {' '.join(str(error).split())}\n")
        return cli.BAD_INPUT
    except BaseException as error:
        if not was_interrupted(error):
            raise
        sys.stderr.write(f"\n{PROG}: interrupted; run the same command again to resume\n")
        return cli.INTERRUPTED


def _run(args: argparse.Namespace) -> int:
    options = _options(args)
    remote = [place for place in (args.data_dir, args.out_dir) if isinstance(place, str)]
    if args.dry_run and isinstance(args.data_dir, str):
        raise UserError("--dry-run: the videos of a URI would first be copied; give --data_dir a folder")
    if isinstance(args.out_dir, str):
        check_target(args.out_dir)
    data, out = source_folder(args.data_dir), target_folder(args.out_dir)
    for flag, folder in (("--data_dir", data), ("--out_dir", out)):
        if readable(str(folder)) != str(folder):
            raise UserError(f"{flag}: the name of {readable(str(folder))} is not UTF-8; rename it")
    found = find_splits(data, _division(args), args.extension, out)
    splits = found.splits
    _check_apart(data, out, splits)
    tasks = {split.name: plan(out / split.name, split.sources, options) for split in splits if split.sources}
    # Inspect every split before any work, so that a mistake in the last one is reported at once.
    states = {name: resuming.look(out / name, tasks[name]) for name in tasks}
    if args.dry_run:
        _say_preview({name: preview(tasks[name], states[name]) for name in tasks})
        return 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        with file_lock(out / LOCK, blocking=False):
            for name, state in states.items():
                if state.finished:
                    sys.stderr.write(f"{args.out_dir}/{name}: already finished, kept; delete it to convert it again\n")
            done = convert_all(out, tasks, states, args.num_workers, use_cluster=not remote)
    except Timeout:
        raise UserError(f"--out_dir: another conversion is writing to {args.out_dir}; wait until it ends") from None
    finally:
        if {path.name for path in out.iterdir()} <= {LOCK}:  # stopped before anything was written
            (out / LOCK).unlink(missing_ok=True)
            out.rmdir()
    summary = summarize(found, done)
    code = _report(args, summary)
    made = [split.name for split in summary.splits]
    if isinstance(args.out_dir, str):
        publish(out, args.out_dir, made)
    _say_next(args, made)
    emptied = any(split.name not in made for split in splits)
    return 1 if emptied else code


def _say_preview(splits: Mapping[str, Preview]) -> None:
    rows = [
        (name, p.clips, round(p.source_bytes / 1e6, 1), p.left, p.frames, round(p.bytes / 1e6, 1))
        for name, p in splits.items()
    ]
    terminal.say(terminal.table(rows, ("split", "clips", "MB", "to convert", "to frames, about", "of MB, about")))
    for line in (line for p in splits.values() for line in p.bad):
        sys.stderr.write(f"unreadable: {' '.join(readable(line).split())}\n")


def _options(args: argparse.Namespace) -> Options:
    if args.image_size < 16 or args.image_size % 8:
        raise UserError(f"--image_size: must be a multiple of 8, at least 16, not {args.image_size}")
    for flag in ("frame_stride", "min_length", "num_workers"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')}: must be at least 1, not {value}")
    for flag in ("fps", "white"):
        value = getattr(args, flag)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{flag}: must be above 0, not {value:g}")
    layout = LAYOUTS[args.layout]
    return Options(
        args.image_size, args.fit, args.frame_stride, args.grey, args.min_length, layout, args.fps, args.white
    )


def _division(args: argparse.Namespace) -> Division:
    if args.dataset and args.split:
        raise UserError(f"--split: --dataset {args.dataset} already defines the splits; give only one of the two")
    if args.group_by is not None:
        if not args.split:
            raise UserError("--group-by: works only with --split; add --split 0.8,0.1,0.1")
        try:
            re.compile(args.group_by)
        except re.error as error:
            raise UserError(f"--group-by: not a regular expression ({error}): {args.group_by!r}") from None
    return Division(args.dataset, _fractions(args.split), args.group_by)


def _fractions(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        train, val, test = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--split: must be three numbers with commas, such as 0.8,0.1,0.1, not {text!r}") from None
    if not (min(train, val, test) >= 0 and abs(train + val + test - 1) < 1e-6):
        raise UserError(f"--split: fractions must be at least 0 and add up to 1, not {text!r}")
    return train, val, test


def _check_apart(data: Path, out: Path, splits: Sequence[Split]) -> None:
    """Refuse an output folder among the sources: the next run would take the output for sources."""
    for split in splits:
        target = (out / split.name).resolve()
        for source in (item.path.resolve() for item in split.sources):
            if target == source or target in source.parents:
                raise UserError(f"--out_dir: {target} contains source videos; choose a folder outside of {data}")
    if not split_folders(data) and data.resolve() in (out / "x").resolve().parents:
        raise UserError(f"--out_dir: {out} is inside --data_dir, which is searched at any depth; choose another folder")


def _report(args: argparse.Namespace, summary: Summary) -> int:
    if summary.splits:
        rows = [(s.name, s.clips, s.frames, round(s.bytes / 1e6, 1), s.left_out) for s in summary.splits]
        terminal.say(terminal.table(rows, ("split", "clips", "frames", "MB", "left out")))
        terminal.say(
            f"{summary.found} sources found: {summary.packed} packed, {summary.found - summary.packed} left out;"
            f" {len(summary.notes)} odd"
        )
    for lines, title in (
        (summary.bad, "unreadable or duplicate, left out:"),
        (summary.short, f"shorter than {args.min_length} frames, left out:"),
        (summary.notes, "kept despite a problem:"),
        (summary.ignored, "without videos or images, ignored:"),
    ):
        if lines:
            text = "".join(f"  {' '.join(readable(line).split())}\n" for line in lines)
            sys.stderr.write(f"{len(lines)} {title}\n{text}")
    if not summary.splits:
        raise UserError(f"{args.data_dir}: no usable clip, nothing was written; see the reasons above")
    return 1 if summary.bad and not args.skip_bad else 0


def _say_next(args: argparse.Namespace, made: Sequence[str]) -> None:
    """Print the command to run next, and what it will lack."""
    absent = [name for name in SPLITS if name not in made]
    if absent:
        sys.stderr.write(
            f"no {', no '.join(absent)} split: training needs train and val, evaluation needs test; --split takes"
            " missing ones out of train\n"
        )
    if "train" not in made or "val" not in made:
        data, split = shlex.quote(str(args.data_dir)), "0.9,0.1,0" if "test" in made else "0.8,0.1,0.1"
        if "train" in made:
            out = shlex.quote(f"{args.out_dir}-split")
            flags = f"--data_dir {data} --out_dir {out} --image_size {args.image_size} --split {split}"
            terminal.say(f"\nnext: python -m {PROG} {flags}")
        return
    name = re.sub(r"[^\w.-]", "_", target_folder(args.out_dir).resolve().name) or "videos"
    size = "" if args.image_size == 64 else f" --dataset.image_size {args.image_size}"
    flags = f"--dataset.root {shlex.quote(str(args.out_dir))} --dataset.name {name}{size}"
    terminal.say(f"\nnext: python -m raypipe.train --run-name f-01-nll {flags}")


if __name__ == "__main__":
    sys.exit(main())
