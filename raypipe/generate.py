"""Predict what follows in a video: ``python -m raypipe.generate --model DIR --input VIDEO --frames 36``.

The model continues the first K frames of the input, taken one frame interval apart. If the input is long enough, its
next frames are shown beside the prediction, as the truth.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import torch

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.places import Place, to_place
from raypipe.config import SOLVERS, ConfigError
from raypipe.config.sections import solver_name
from raypipe.data.frames import to_float, to_uint8
from raypipe.data.remote import fetch, remote_file
from raypipe.data.shards.storage import Folder, RemoteFolder
from raypipe.data.shards.writer import ShardWriter
from raypipe.data.video.io import Frames, write_gif, write_video
from raypipe.forecast.clip import MOST_FRAMES, Clip, read_clip
from raypipe.forecast.film import forecast_film
from raypipe.forecast.manifest import MANIFEST, find_best, read_manifest
from raypipe.forecast.predictor import load_predictor
from raypipe.workspace import bucket
from raypipe.workspace.claims import latest
from raypipe.workspace.dataset import has_shards, prepare_dataset
from raypipe.workspace.layout import Workspace

PROG = "raypipe.generate"
FORMATS = ("mp4", "gif", "shards")


def make_parser() -> cli.Parser:
    parser = cli.Parser(prog=PROG, description="Predict what follows in a video.", allow_abbrev=False)
    parser.add_argument("--model", type=to_place, metavar="DIR", help="folder or URI of an experiment or its best/, "
                        "or hf://USER/NAME "
                        "(default: the latest experiment under the storage root with a best/)")  # fmt: skip
    parser.add_argument("--input", type=to_place, metavar="VIDEO", help="video, folder of images, or folder of "
                        "clips or shards, as a path or URI "
                        "(default: the test split of the model's experiment)")  # fmt: skip
    parser.add_argument("--frames", type=cli.positive, metavar="N", help="number of frames to predict (default: "
                        f"those left in the input, at most {MOST_FRAMES}; {MOST_FRAMES} if none are left)")  # fmt: skip
    parser.add_argument("--interpolate", type=cli.positive, default=1, metavar="K", help="output frames per "
                        "predicted frame: K - 1 in-between frames and the frame itself (default: 1)")  # fmt: skip
    parser.add_argument(
        "--members", type=cli.positive, default=1, metavar="M", help="number of forecasts to sample (default: 1)"
    )
    parser.add_argument("--output", type=Path, metavar="OUT", help="output file, to which the suffix of the format is "
                        "added, or folder of shards (default: <input>-prediction in the working directory or, for a "
                        "test clip, in the experiment's samples/)")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only print what would be predicted and written")
    cli.add_storage(parser)
    more = cli.more_flags(parser)
    more.add_argument("--clip", type=int, metavar="I", help="number of the clip, if the input is a folder of "
                        "clips or shards "
                        "(default: 0)")  # fmt: skip
    more.add_argument("--steps", type=cli.positive, metavar="N", help="integration steps per predicted frame "
                        "(default: the model's)")  # fmt: skip
    more.add_argument("--solver", type=solver_name, choices=SOLVERS, help="SDE solver (default: the model's)")
    more.add_argument("--seed", type=_seed, default=0, metavar="S", help="seed of the noise (default: 0)")
    more.add_argument("--format", choices=FORMATS, help="mp4, gif: given and predicted frames beside the truth; "
                        "shards: only the predicted frames, one clip per member (default: mp4 and gif)")  # fmt: skip
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
    source = _input(args.input) if args.input else _test_clips(model)
    clip = read_clip(source, manifest, args.frames, args.clip)
    for note in clip.notes:
        sys.stderr.write(f"note: {note}\n")
    if manifest.last_frame_won:
        sys.stderr.write("note: on validation, repeating the last frame is better than this model's frames\n")
    context, rest = clip.frames[: manifest.num_input_frames], clip.frames[manifest.num_input_frames :]
    horizon = args.frames or len(rest) or MOST_FRAMES
    base = _base(args, model, clip)
    if args.dry_run:
        terminal.say(
            f"would predict {horizon} frames from {len(context)} given frames of {source}: {args.members} member(s), "
            f"{args.steps or manifest.steps} integration step(s) per frame, {args.interpolate} output frame(s) each"
        )
        for path in _paths(base, formats).values():
            terminal.say(f"would write  {path}")
        return 0
    predictor = load_predictor(model)
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

    truth = rest if len(rest) == horizon else None
    written = _write(base, formats, context, members, args.interpolate, truth, clip)
    terminal.say(
        f"predicted {horizon} frames from {len(context)} given frames of {source}: {args.members} member(s), "
        f"{args.steps or manifest.steps} integration step(s) per frame"
    )
    terminal.say(f"frames {clip.prepared}")
    if truth is None and set(formats) != {"shards"}:
        terminal.say(f"the truth is not shown: the input has only {len(rest)} frames after the given ones")
    for path in written:
        terminal.say(f"wrote  {path}")
    again = "VIDEO" if args.input is None else args.input
    place = args.model if isinstance(args.model, str) else model
    terminal.say(
        f"next   python -m raypipe.generate --model {place} --input {again} --frames {horizon} --interpolate 4"
    )
    return 0


def _input(place: Place) -> Folder:
    """What to read: shards under a URI are read in place, and anything else is copied to this machine first."""
    if isinstance(place, Path):
        return place
    if remote_file(place) is None and has_shards(RemoteFolder(place)):
        return RemoteFolder(place)
    return fetch(place)


def _latest(args: argparse.Namespace) -> Path:
    storage = bucket.storage_root(args, writes=False)
    workspace = latest(storage, lambda w: (w.best / MANIFEST).is_file())
    if workspace is None:
        raise ConfigError(
            f"--model: no experiment in {bucket.shown(storage)} has a {Path('best') / MANIFEST}; run "
            "experiments/pipeline.py first"
        )
    bucket.look(storage, workspace.name, "best/")
    return workspace.folder


def _experiment_of(model: Path) -> Workspace | None:
    """The experiment that contains the model folder; None if the folder is not inside an experiment."""
    folder = model.resolve().parent
    return Workspace(folder.parent, folder.name) if (folder / "config.yaml").is_file() else None


def _test_clips(model: Path) -> Folder:
    workspace = _experiment_of(model)
    if workspace is None:
        raise ConfigError(f"--input: required, because {model} is not inside an experiment that has test clips")
    experiment = workspace.experiment()
    if bucket.origin(workspace.storage) is not None and experiment.dataset.simulated:
        prepare_dataset(workspace, experiment, lambda done, total: None)  # which a bucket does not hold
    return workspace.dataset(experiment) / "test"


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
    if workspace is not None and bucket.origin(workspace.storage) is not None:
        workspace = None  # its local folder is for what the bucket holds
    return (workspace.folder / "samples" if workspace else Path()) / f"{clip.name}-prediction"


def _paths(base: Path, formats: Sequence[str]) -> dict[str, Path]:
    """The path of the output in each format."""
    return {kind: base if kind == "shards" else base.with_name(f"{base.name}.{kind}") for kind in formats}


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
    paths = _paths(base, formats)
    for kind, path in paths.items():
        writers[kind](path, film, clip.fps * interpolate)
    return list(paths.values())


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
