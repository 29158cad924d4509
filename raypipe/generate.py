"""Predict what follows in a video: ``python -m raypipe.generate --model DIR --input VIDEO --frames 36``.

The first K frames of the input are given to the model, one frame interval apart; if the input goes on, what
really followed is shown beside the prediction.
"""

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.errors import UserError
from raypipe.config import SOLVERS, ConfigError
from raypipe.config.sections import solver_name
from raypipe.data.frames import to_float, to_uint8
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder, RemoteFolder
from raypipe.data.shards.writer import INDEX, PATTERN, ShardWriter
from raypipe.data.video.io import Frames, iter_frames, iter_video, resize, write_gif, write_video
from raypipe.forecast.film import forecast_film
from raypipe.forecast.manifest import MANIFEST, Manifest, find_best, read_manifest
from raypipe.forecast.predictor import load_predictor
from raypipe.workspace.claims import latest
from raypipe.workspace.layout import Workspace

PROG = "raypipe.generate"
FORMATS = ("mp4", "gif", "shards")
IMAGES = ("png", "jpg", "jpeg", "bmp", "webp")
FPS = 8.0
"""Of an input that does not say."""
MOST_FRAMES = 36
"""Predicted by default, where the input does not end sooner."""


@dataclass(frozen=True)
class Clip:
    """An input. frames: uint8 [T, S, S, 3], one frame interval apart and of the model's size; fps: of these."""

    name: str
    frames: Frames
    fps: float


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog=PROG, description="Predict what follows in a video.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, metavar="DIR", help="an experiment's folder, or the best/ in it "
                        "(default: the latest experiment under the storage root that has one)")  # fmt: skip
    parser.add_argument("--input", type=Path, metavar="VIDEO", help="a video file, a folder of frames, or a folder of "
                        "shards (default: the test clips that the model's experiment has)")  # fmt: skip
    parser.add_argument("--clip", type=int, metavar="I", help="which clip of a folder of shards (default: 0)")
    parser.add_argument("--frames", type=cli.positive, metavar="N", help="frames to predict (default: as many as "
                        f"the input goes on for, at most {MOST_FRAMES})")  # fmt: skip
    parser.add_argument("--interpolate", type=cli.positive, default=1, metavar="K", help="frames shown a frame "
                        "interval: K - 1 in-between ones and the whole one (default: 1)")  # fmt: skip
    parser.add_argument("--steps", type=cli.positive, metavar="N", help="integration steps a frame interval (default: "
                        "the model's)")  # fmt: skip
    parser.add_argument(
        "--solver", type=solver_name, choices=SOLVERS, help="how the SDE is integrated (default: the model's)"
    )
    parser.add_argument("--members", type=cli.positive, default=1, metavar="M", help="forecasts to draw (default: 1)")
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="seed of the noise (default: 0)")
    parser.add_argument("--output", type=Path, metavar="OUT", help="what to write; the format's suffix is added "
                        "(default: <name of the input>-prediction, here or in the experiment's samples/)")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="mp4 or gif: given and predicted frames, beside the truth; "
                        "shards: the predicted frames alone, a clip a member (default: mp4 and gif)")  # fmt: skip
    parser.add_argument("--storage", metavar="DIR", help="storage root of the experiments (default: $RAYPIPE_STORAGE "
                        "or ~/raypipe)")  # fmt: skip
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, not {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        return _generate(args)
    except (OSError, av.FFmpegError) as error:
        raise ConfigError(f"{error.filename or args.output}: {error.strerror or error}; see --output") from None


def _generate(args: argparse.Namespace) -> int:
    model = find_best(args.model or _latest(args))
    manifest = read_manifest(model)
    formats = _formats(args)
    source = args.input or _test_clips(model)
    clip = read_clip(source, manifest, args.frames, args.clip)
    predictor = load_predictor(model)
    context, rest = clip.frames[: manifest.num_input_frames], clip.frames[manifest.num_input_frames :]
    horizon = args.frames or len(rest) or MOST_FRAMES
    predicted = predictor.predict(
        to_float(torch.from_numpy(context))[None],
        horizon,
        args.steps,
        args.members,
        args.interpolate,
        args.seed,
        args.solver,
    )
    members = to_uint8(predicted[0]).numpy()

    base = _base(args, model, clip)
    truth = rest if len(rest) == horizon else None
    written = _write(base, formats, context, members, args.interpolate, truth, clip)
    terminal.say(
        f"predicted {horizon} frames after {len(context)} of {source}, {args.members} member(s), "
        f"{args.steps or manifest.steps} step(s) a frame"
    )
    if truth is None and set(formats) != {"shards"}:
        terminal.say(f"no truth beside it: the input has {len(rest)} frames after the given ones")
    for path in written:
        terminal.say(f"wrote  {path}")
    again = "VIDEO" if args.input is None else args.input
    terminal.say(
        f"next   python -m raypipe.generate --model {model} --input {again} --frames {horizon} --interpolate 4"
    )
    return 0


def _latest(args: argparse.Namespace) -> Path:
    storage = cli.storage_root(args)
    workspace = latest(storage, lambda w: (w.best / MANIFEST).is_file())
    if workspace is None:
        raise ConfigError(
            f"--model: no experiment in {storage} has a {Path('best') / MANIFEST}; run experiments/pipeline.py first"
        )
    return workspace.folder


def _experiment_of(model: Path) -> Workspace | None:
    """The experiment that a `best/` lies in."""
    folder = model.resolve().parent
    return Workspace(folder.parent, folder.name) if (folder / "config.yaml").is_file() else None


def _test_clips(model: Path) -> Folder:
    workspace = _experiment_of(model)
    if workspace is None:
        raise ConfigError(f"--input: say which video; {model} lies in no experiment whose test clips could be taken")
    return workspace.dataset(workspace.experiment()) / "test"


def read_clip(path: Folder, manifest: Manifest, horizon: int | None, number: int | None = None) -> Clip:
    """The first frames of a video file, a folder of frames, or a clip of a folder of shards, as the model takes them.

    Reads K + horizon frames, `frame_stride` apart, if there are as many. Raises ValueError if there are not K.
    """
    given, stride, size = manifest.num_input_frames, manifest.frame_stride, manifest.image_size
    stop = (given + (horizon or MOST_FRAMES) - 1) * stride + 1
    name, fps, frames = _open(path, number)
    taken = [resize(frame, size) for frame in islice(frames, 0, stop, stride)]
    if len(taken) < given:
        apart = f", {stride} apart" if stride > 1 else ""
        raise UserError(f"{path}: too short, it has {len(taken)} frames{apart}, and the model starts from {given}")
    return Clip(name, np.stack(taken), manifest.fps or FPS if fps is None else fps / stride)


def _open(path: Folder, number: int | None) -> tuple[str, float | None, Iterator[Frames]]:
    """Name, frames a second (None: not known) and frames [H, W, 3] of an input."""
    is_shards = isinstance(path, RemoteFolder) or (
        path.is_dir() and ((path / INDEX).is_file() or any(path.glob(PATTERN)))
    )
    if number is not None and not is_shards:
        raise UserError(f"--clip: only for a folder of shards, and {path} is none")
    if is_shards or isinstance(path, RemoteFolder):
        return _open_shard(path, number or 0)
    if path.is_dir():
        held = {entry.suffix.lower().lstrip(".") for entry in path.iterdir() if not entry.name.startswith(".")}
        extension = next((suffix for suffix in IMAGES if suffix in held), None)
        if extension is None:
            raise UserError(
                f"{path}: neither shards nor .{', .'.join(IMAGES)} frames in this folder; give a video file, a folder "
                "of frames, or a split of a dataset, such as DATASET/test"
            )
        return path.resolve().name, None, iter_frames(path, extension)
    if not path.exists():
        raise UserError(f"{path}: no such video file or folder")
    return path.stem, _rate(path), iter_video(path)


def _open_shard(path: Folder, number: int) -> tuple[str, float | None, Iterator[Frames]]:
    shards = open_shards(path)
    if not 0 <= number < len(shards):
        raise UserError(f"--clip: {path} has clips 0 to {len(shards) - 1}, not {number}")
    if len(shards.frame_shape) != 3 or shards.frame_shape[2] != 3 or shards.dtype != np.uint8:
        raise UserError(f"{path}: holds {shards.dtype} {list(shards.frame_shape)}, not frames; give a dataset's split")
    name = re.sub(r"[^\w.-]", "_", shards.names[number])
    return name, None, (shards.frames(number, [t])[0] for t in range(int(shards.lengths[number])))


def _rate(path: Path) -> float | None:
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except (av.FFmpegError, OSError):
        return None  # iter_video says what is wrong with it
    return float(rate) if rate else None


def _formats(args: argparse.Namespace) -> tuple[str, ...]:
    """The one asked for, by --format or the output's suffix; else a film in both formats."""
    suffix = args.output.suffix.lower().lstrip(".") if args.output else ""
    meant = suffix if suffix in ("mp4", "gif") else None
    if args.format and meant and args.format != meant:
        raise ConfigError(f"--output: {args.output} does not end as --format {args.format} does; change one of them")
    chosen = args.format or meant
    return (chosen,) if chosen else ("mp4", "gif")


def _base(args: argparse.Namespace, model: Path, clip: Clip) -> Path:
    """Where to write, without the format's suffix."""
    if args.output is not None:
        output: Path = args.output
        return output.with_suffix("") if output.suffix.lower() in (".mp4", ".gif") else output
    workspace = _experiment_of(model) if args.input is None else None
    return (workspace.folder / "samples" if workspace else Path()) / f"{clip.name}-prediction"


def _write(
    base: Path,
    formats: Sequence[str],
    context: Frames,
    members: Frames,
    interpolate: int,
    truth: Frames | None,
    clip: Clip,
) -> list[Path]:
    """Write the formats; gives the paths."""
    if "shards" in formats:
        with ShardWriter(base) as writer:
            for i, member in enumerate(members):
                writer.add(f"{clip.name}-{i:03d}", member, source=clip.name)
        return [base]
    film = forecast_film(context, members, interpolate, truth)
    writers = {"mp4": write_video, "gif": write_gif}
    paths = {kind: base.with_name(f"{base.name}.{kind}") for kind in formats}
    for kind, path in paths.items():
        writers[kind](path, film, clip.fps * interpolate)
    return list(paths.values())


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
