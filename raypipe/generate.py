"""Predict what follows in a video: ``python -m raypipe.generate --model DIR --input VIDEO --frames 36``.

The model continues the first K frames of the input, taken one frame interval apart. If the input is long enough, its
next frames are shown beside the prediction, as the truth.
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
"""Frame rate assumed when neither the input nor the model has one."""
MOST_FRAMES = 36
"""Most frames that are predicted if --frames is not given."""


@dataclass(frozen=True)
class Clip:
    """An input clip. frames: uint8 [T, S, S, 3], one frame interval apart, resized for the model; fps: their rate."""

    name: str
    frames: Frames
    fps: float


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog=PROG, description="Predict what follows in a video.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of an experiment, or its best/ "
                        "(default: the latest experiment under the storage root with a best/)")  # fmt: skip
    parser.add_argument("--input", type=Path, metavar="VIDEO", help="video file, folder of images, or folder of shards "
                        "(default: the test split of the model's experiment)")  # fmt: skip
    parser.add_argument("--clip", type=int, metavar="I", help="number of the clip, if the input is a folder of shards "
                        "(default: 0)")  # fmt: skip
    parser.add_argument("--frames", type=cli.positive, metavar="N", help="number of frames to predict (default: "
                        f"those left in the input, at most {MOST_FRAMES}; {MOST_FRAMES} if none are left)")  # fmt: skip
    parser.add_argument("--interpolate", type=cli.positive, default=1, metavar="K", help="output frames per "
                        "predicted frame: K - 1 in-between frames and the frame itself (default: 1)")  # fmt: skip
    parser.add_argument("--steps", type=cli.positive, metavar="N", help="integration steps per predicted frame "
                        "(default: the model's)")  # fmt: skip
    parser.add_argument("--solver", type=solver_name, choices=SOLVERS, help="SDE solver (default: the model's)")
    parser.add_argument(
        "--members", type=cli.positive, default=1, metavar="M", help="number of forecasts to sample (default: 1)"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="seed of the noise (default: 0)")
    parser.add_argument("--output", type=Path, metavar="OUT", help="output file, to which the suffix of the format is "
                        "added, or folder of shards (default: <input>-prediction in the working directory or, for a "
                        "test clip, in the experiment's samples/)")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, help="mp4, gif: given and predicted frames beside the truth; "
                        "shards: only the predicted frames, one clip per member (default: mp4 and gif)")  # fmt: skip
    parser.add_argument("--storage", metavar="DIR", help="storage root of the experiments (default: $RAYPIPE_STORAGE, "
                        "else ~/raypipe)")  # fmt: skip
    return parser


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        return _generate(args)
    except (OSError, av.FFmpegError) as error:
        raise ConfigError(f"{error.filename or args.output}: {error.strerror or error}; check --output") from None


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
        f"predicted {horizon} frames from {len(context)} given frames of {source}: {args.members} member(s), "
        f"{args.steps or manifest.steps} integration step(s) per frame"
    )
    if truth is None and set(formats) != {"shards"}:
        terminal.say(f"the truth is not shown: the input has only {len(rest)} frames after the given ones")
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
    """The experiment that contains the model folder; None if the folder is not inside an experiment."""
    folder = model.resolve().parent
    return Workspace(folder.parent, folder.name) if (folder / "config.yaml").is_file() else None


def _test_clips(model: Path) -> Folder:
    workspace = _experiment_of(model)
    if workspace is None:
        raise ConfigError(f"--input: required, because {model} is not inside an experiment that has test clips")
    return workspace.dataset(workspace.experiment()) / "test"


def read_clip(path: Folder, manifest: Manifest, horizon: int | None, number: int | None = None) -> Clip:
    """Read the first K + horizon frames (fewer if the input ends) of an input, `frame_stride` apart, for a model.

    path: a video file, a folder of images, or a folder of shards, of which clip `number` is read. horizon: None for
    `MOST_FRAMES`. Raises UserError if the input cannot be read or has fewer than K frames.
    """
    given, stride, size = manifest.num_input_frames, manifest.frame_stride, manifest.image_size
    stop = (given + (horizon or MOST_FRAMES) - 1) * stride + 1
    name, fps, frames = _open(path, number)
    taken = [resize(frame, size) for frame in islice(frames, 0, stop, stride)]
    if len(taken) < given:
        apart = f", {stride} apart" if stride > 1 else ""
        raise UserError(
            f"{path}: too short: it has {len(taken)} frames{apart}, but the model needs {given} to start from"
        )
    return Clip(name, np.stack(taken), manifest.fps or FPS if fps is None else fps / stride)


def _open(path: Folder, number: int | None) -> tuple[str, float | None, Iterator[Frames]]:
    """Name, frame rate (None: unknown) and iterator over the frames, uint8 [H, W, 3], of an input."""
    is_shards = isinstance(path, RemoteFolder) or (
        path.is_dir() and ((path / INDEX).is_file() or any(path.glob(PATTERN)))
    )
    if number is not None and not is_shards:
        raise UserError(f"--clip: only for a folder of shards, which {path} is not")
    if is_shards or isinstance(path, RemoteFolder):
        return _open_shard(path, number or 0)
    if path.is_dir():
        held = {entry.suffix.lower().lstrip(".") for entry in path.iterdir() if not entry.name.startswith(".")}
        extension = next((suffix for suffix in IMAGES if suffix in held), None)
        if extension is None:
            raise UserError(
                f"{path}: has neither shards nor images (.{', .'.join(IMAGES)}); give a video file, a folder "
                "of images, or a split of a dataset, such as DATASET/test"
            )
        return path.resolve().name, None, iter_frames(path, extension)
    if not path.exists():
        raise UserError(f"{path}: no such video file or folder")
    return path.stem, _rate(path), iter_video(path)


def _open_shard(path: Folder, number: int) -> tuple[str, float | None, Iterator[Frames]]:
    """As `_open`, for a clip of a folder of shards."""
    shards = open_shards(path)
    if not 0 <= number < len(shards):
        raise UserError(f"--clip: must be from 0 to {len(shards) - 1}, the clips of {path}, not {number}")
    if len(shards.frame_shape) != 3 or shards.frame_shape[2] != 3 or shards.dtype != np.uint8:
        raise UserError(
            f"{path}: must contain uint8 [H, W, 3] frames, not {shards.dtype} {list(shards.frame_shape)}; give a split "
            "of a dataset, such as DATASET/test"
        )
    name = re.sub(r"[^\w.-]", "_", shards.names[number])
    return name, None, (shards.frames(number, [t])[0] for t in range(int(shards.lengths[number])))


def _rate(path: Path) -> float | None:
    """Frames per second of a video file; None if unknown."""
    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate if container.streams.video else None
    except (av.FFmpegError, OSError):
        return None  # reported by iter_video, which opens the file next
    return float(rate) if rate else None


def _formats(args: argparse.Namespace) -> tuple[str, ...]:
    """The output format given by --format or by the suffix of --output; by default both video formats."""
    suffix = args.output.suffix.lower().lstrip(".") if args.output else ""
    from_suffix = suffix if suffix in ("mp4", "gif") else None
    if args.format and from_suffix and args.format != from_suffix:
        raise ConfigError(
            f"--output: the suffix of {args.output} contradicts --format {args.format}; change one of them"
        )
    chosen = args.format or from_suffix
    return (chosen,) if chosen else ("mp4", "gif")


def _base(args: argparse.Namespace, model: Path, clip: Clip) -> Path:
    """The output path, without the suffix of the format."""
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
    """Write the prediction in each format and return the paths.

    context: [K, S, S, 3]; members: [M, n * interpolate, S, S, 3]; truth: [n, S, S, 3]; all uint8.
    """
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
