"""Score the combinations of the best flows, denoisers and diffusions: ``python -m raypipe.evaluate``.

All combinations are scored on the validation split, in parallel Ray tasks. The best one and the baselines are then
scored once on the test split; `rivals` that are not trained yet are trained before. The best one is saved in
``best/``, which `raypipe.load_predictor` and ``raypipe.generate`` read.
"""

import argparse
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raypipe import cli, config
from raypipe.common import terminal
from raypipe.common.files import write_json
from raypipe.common.places import Place, to_place
from raypipe.config import ConfigError, Evaluation, Experiment
from raypipe.data.video.fitting import Frames
from raypipe.distributed.capacity import check_evaluation, check_nodes
from raypipe.distributed.connection import passing_ray, start_ray
from raypipe.evaluation import external, rules
from raypipe.evaluation.combinations import combinations
from raypipe.evaluation.perceptual.scores import Networks
from raypipe.evaluation.perceptual.weights import ACCEPTED, Kind, check_weights, weights_hashes
from raypipe.evaluation.predictions import LAYOUT, open_predictions
from raypipe.evaluation.protocol import check_protocol, in_words
from raypipe.evaluation.run import StageFinalists, is_searched
from raypipe.forecast.manifest import find_best
from raypipe.forecast.predictor import load_predictor
from raypipe.report.dry_run import plan_text
from raypipe.report.live_page import LivePage
from raypipe.report.summary import evaluated_rows, finish, protocol_table
from raypipe.search.dry_run import plan_evaluation
from raypipe.search.progress import is_evaluated
from raypipe.search.rivals import are_trained, train_rivals
from raypipe.workspace import bucket
from raypipe.workspace.claims import latest
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

PROG = "raypipe.evaluate"
ABOUT = """Score the combinations of the best flows, denoisers and diffusions of an experiment.

This is the experiment given by --name, else the latest one with a finished search; with --config, the latest one that
has the name of that config. Its stored config is used, changed by the config fields given as flags.

With --protocol, another model or predictions made elsewhere are scored as that protocol says, in pixels, without Ray:
--model or --predictions says what. Of the config fields, only the files of weights apply, and --dataset.root and what
reads it, if the dataset is not where the protocol says. With neither, the protocol is written to --out with its clips
and windows by name."""


def make_parser() -> cli.Parser:
    parser = cli.experiment_parser(PROG, ABOUT)
    parser.add_argument(
        "--top-k",
        type=cli.positive,
        metavar="K",
        help="number of finalists of each stage to combine (default: search.top_k)",
    )
    scores: dict[Kind, str] = {"i3d": "FVD", "lpips": "LPIPS", "vjepa": "JEDi"}
    for kind, score in scores.items():
        parser.add_argument(
            f"--{kind}-weights",
            metavar="FILE",
            help=f"weights for {score}: {ACCEPTED[kind]} (short for --evaluation.{kind}_weights)",
        )
    parser.add_argument(
        "--again",
        action="store_true",
        help="delete earlier scores and score everything again, including the test split",
    )
    cli.add_dry_run(parser)
    cli.add_break_lock(parser)
    under = parser.add_argument_group("scores under a protocol")
    under.add_argument(
        "--protocol",
        metavar="FILE",
        help=f"experiment folder or its evaluation/protocol.json, or one of {', '.join(rules.names())}",
    )
    under.add_argument(
        "--model", type=to_place, metavar="DIR", help="experiment or best/ folder, or its URI, of the model to score"
    )
    under.add_argument("--predictions", type=Path, metavar="DIR", help=f"predictions to score: {LAYOUT}")
    under.add_argument(
        "--write-predictions",
        type=Path,
        metavar="DIR",
        help="also write the model's predictions to a new folder of shards, which --predictions reads",
    )
    under.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON file of the scores (default: scores.json beside the predictions)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, overrides = cli.parse(make_parser(), argv)
    files = {name: getattr(args, f"{kind}_weights") for kind, name in zip(ACCEPTED, WEIGHTS, strict=True)}
    overrides |= {name: path for name, path in files.items() if path is not None}
    storage = bucket.storage_root(args, writes=not args.dry_run)
    if args.protocol is not None:
        _check_flags(args, overrides)
        return _under_protocol(args, overrides, storage)
    for flag in ("model", "predictions", "write_predictions", "out"):
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')}: needs --protocol, which says how forecasts are scored")
    if args.name:
        workspace = Workspace(storage, args.name)
        workspace.experiment()
    else:
        named = cli.experiment(args, overrides).name if args.config else None
        found = latest(storage, is_searched, like=named)
        if found is None:
            raise ConfigError(
                f"--storage: no finished search in {bucket.shown(storage)!r}; run python experiments/pipeline.py first"
            )
        workspace = found
    experiment = cli.with_overrides(workspace.experiment(), overrides)
    StageFinalists.read(workspace)
    check_weights(experiment)
    bucket.check_free(storage, workspace.name, break_lock=args.break_lock)
    top_k = args.top_k or experiment.search.top_k
    if args.dry_run:
        return _dry_run(experiment, workspace, top_k, again=args.again)
    _begin(experiment, workspace)
    with bucket.stored(storage, workspace.name, break_lock=args.break_lock):
        if args.again:
            shutil.rmtree(workspace.evaluation, ignore_errors=True)
        terminal.say(f"evaluating {workspace.folder}")
        train_rivals(experiment, workspace)
        finish(experiment, workspace, top_k)
        LivePage(workspace).write()
    return 0


def _begin(experiment: Experiment, workspace: Workspace, folder: Path | None = None) -> None:
    start_ray(folder=folder)
    check_evaluation(experiment)
    check_nodes(workspace)


def _dry_run(experiment: Experiment, workspace: Workspace, top_k: int, *, again: bool) -> int:
    terminal.say(f"would be evaluated: {bucket.shown(workspace.storage, workspace.folder)}\n")
    if not again:
        check_protocol(ExperimentData(experiment, workspace))
        if is_evaluated(workspace, experiment.search) and are_trained(experiment, workspace):
            terminal.say("all of it is scored already; --again scores it anew")
            return 0
    with passing_ray() as folder:
        _begin(experiment, workspace, folder)
        plan = plan_evaluation(config.replace(experiment, **{"search.top_k": top_k}), workspace)
        handed = StageFinalists.read(workspace)
        found = combinations(handed.flows, handed.denoisers, handed.diffusions, handed.joints, experiment, top_k)
        evaluation = experiment.evaluation
        terminal.say(f"{len(found)} combinations on {evaluation.windows} validation windows, the best of them on test")
        if experiment.rivals:
            terminal.say(f"rivals   {', '.join(experiment.rivals)}")
        terminal.say(plan_text(plan, workspace.storage))
    return 0


WEIGHTS = tuple(f"evaluation.{kind}_weights" for kind in ACCEPTED)
READS = ("dataset.root", "dataset.cache", "dataset.cache_gb", "dataset.stall_seconds", *WEIGHTS)
"""Config fields that apply with --protocol."""


def _check_flags(args: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    others = {"--config": args.config, "--name": args.name, "--top-k": args.top_k, "--again": args.again or None}
    given = [flag for flag, value in others.items() if value is not None]
    given += [f"--{name}" for name in overrides if name not in READS]
    if given:
        raise ConfigError(f"{given[0]}: does not apply with --protocol, which says it; leave it out")
    if args.model is not None and args.predictions is not None:
        raise ConfigError("--predictions: contradicts --model; score one of them at a time")
    if args.write_predictions is not None and args.model is None:
        raise ConfigError("--write-predictions: needs --model, which makes the predictions")


def _under_protocol(args: argparse.Namespace, overrides: Mapping[str, Any], storage: Path) -> int:
    task = rules.open_task(rules.read_rules(args.protocol), storage, overrides)
    note = task.protocol.text.get("note")
    if note:
        terminal.say(f"{task.protocol.name}: {note}")
    if args.model is None and args.predictions is None:
        if args.out is None:
            raise ConfigError("--protocol: needs --model or --predictions to score, or --out for its windows by name")
        if args.dry_run:
            terminal.say(f"would write  {args.out}: {len(task.windows)} windows")
            return 0
        _write(args.out, lambda: write_json(args.out, external.protocol_for(task)))
        terminal.say(f"wrote  {args.out}: {len(task.windows)} windows")
        terminal.say(f"next   python -m raypipe.evaluate --protocol {args.out} --predictions DIR; DIR is {LAYOUT}")
        return 0
    evaluation = _checked_weights(task, {name: overrides[name] for name in WEIGHTS if name in overrides})
    folder = args.predictions
    what: dict[str, Any] = {"weights": weights_hashes(evaluation)}
    frames: Iterable[Frames]
    if args.dry_run:
        if args.model is not None:
            external.check_model(load_predictor(find_best(_local(args.model))), task, str(args.model))
        else:
            open_predictions(folder, task)
        terminal.say(f"would score {args.model or folder} on {len(task.windows)} windows of {task.protocol.name}")
        return 0
    with terminal.progress_bar("score", len(task.windows), "window") as bar:
        if args.model is not None:
            model = find_best(_local(args.model))
            predictor = load_predictor(model)
            external.check_model(predictor, task, str(args.model))
            what |= {"model": external.hashes(model)}
            frames = external.predict(predictor, task)
            if args.write_predictions is not None:
                folder = args.write_predictions
                _write(folder, lambda: external.write_predictions(folder, task, frames))
        if folder is not None:
            frames = open_predictions(folder, task)
            what |= {"predictions": folder.resolve().name}
        scored = external.score_members(task, frames, Networks.available(evaluation), bar.update)
    out = args.out or (None if folder is None else folder / "scores.json")
    if out is not None:
        _write(out, lambda: write_json(out, external.as_json(task, scored, what)))
    terminal.say(protocol_table(str(args.model or folder), scored, evaluated_rows(task)))
    terminal.say(in_words(external.protocol_for(task), task.rules.split, str(out or task.protocol.path)))
    if out is not None:
        terminal.say(f"\nscores   {out}")
    return 0


def _local(place: Place) -> Place:
    return place.expanduser() if isinstance(place, Path) else place


def _checked_weights(task: rules.Task, files: Mapping[str, Any]) -> Evaluation:
    """The config section with the files of weights. Raises UserError unless they fit the frames of the protocol."""
    frames = task.rules.frames
    sizes = {
        "dataset.image_size": frames.image_size,
        "dataset.num_frames": frames.given + frames.predicted,
        "model.num_input_frames": frames.given,
        "evaluation.horizon": frames.predicted,
    }
    experiment = config.replace(Experiment(), **sizes, **files)
    check_weights(experiment)
    return experiment.evaluation


def _write(path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another place") from None


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
