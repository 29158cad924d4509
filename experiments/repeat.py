"""Run the pipeline with several seeds: `python experiments/repeat.py [--seeds 3]`.

Writes <storage>/<name>-seeds.json: mean and standard deviation over seeds of the test scores of the chosen combination
and the baselines, and of the margin of the chosen combination over the best baseline of the same seed. Also writes
<storage>/<name>-seeds.png: a test clip of seed 0 with its truth, a predicted member, and the in-between frames of that
member. If interrupted, the same command continues.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pipeline
from PIL import Image

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.files import atomic_path, write_json
from raypipe.config import RIVALS
from raypipe.evaluation import table
from raypipe.forecast.film import strip
from raypipe.search import records
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import manifest

METRICS = (
    *("crps_ratio", "crps_ratio_pixels", "energy_ratio_pixels", "bodies_kept"),
    *("psnr", "ssim", "spread_skill", "nfe_per_frame"),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser(
        "repeat.py", "Run the pipeline with several seeds; report mean and standard deviation on test."
    )
    parser.add_argument("--seeds", type=cli.positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    args, overrides = cli.parse(parser, argv)
    experiment, storage = cli.experiment(args, overrides), cli.storage_root(args)
    tested = []
    for seed in range(args.seeds):
        workspace = Workspace(storage, f"{experiment.name}-seed{seed}")
        if not (workspace.best / "manifest.json").is_file():
            begun = (workspace.folder / "config.yaml").exists()
            fields = [f"--{name}={value}" for name, value in overrides.items()]
            config = ["--config", args.config] if args.config else []
            arguments = [*config, *fields, "--storage", str(storage), "--name", workspace.name, "--seed", str(seed)]
            try:
                pipeline.main(arguments + (["--resume"] if begun else []))
            except KeyboardInterrupt:
                raise KeyboardInterrupt("run the same command again to continue") from None  # it has no --resume
        tested.append(records.read_rows(workspace.evaluation / "combinations.parquet"))
    summary, margin = summarize(tested), spread_of_margins(tested)
    path = storage / f"{experiment.name}-seeds.json"
    write_json(path, manifest(experiment, summary=summary, chosen_minus_best_default=margin, runs=args.seeds))
    body = [[name, *(_text(scores[metric]) for metric in METRICS)] for name, scores in summary.items()]
    terminal.say(f"\ntest, mean +- sd over {args.seeds} seeds:")
    terminal.say(terminal.table(body, ["", *METRICS]))
    best = ", ".join(margin["defaults"])
    terminal.say(f"chosen minus best baseline of the same seed ({best}), crps_ratio: {_text(margin)}")
    picture = path.with_suffix(".png")
    save_picture(Workspace(storage, f"{experiment.name}-seed0").folder / "samples" / "sample-2.npz", picture)
    terminal.say(f"\nwritten  {path} and {picture}")
    return 0


def save_picture(sample: Path, path: Path) -> None:
    """Save three strips, each after the last known frame: truth, first member, and in-between frames of that member."""
    with np.load(sample, allow_pickle=False) as kept:
        known, horizon = int(kept["given"]), kept["prediction"].shape[1]
        last = kept["truth"][known - 1 : known]
        futures = kept["truth"][known : known + horizon], kept["prediction"][0], kept["interpolated"][:horizon]
    strips = [strip(np.concatenate([last, future]), known=1) for future in futures]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(strips)).save(temporary, "PNG", optimize=True)


def summarize(runs: Sequence[Sequence[records.Row]]) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation over runs of each metric on test, by baseline (or `chosen`) and metric.

    The name of a rival is followed by its integration steps. runs: rows of combinations.parquet of each run. The best
    of the first run comes first. What some of the runs lack is left out: runs of earlier versions have fewer rows.
    """
    tested = [{_name(r): r for r in rows if r["split"] == "test"} for rows in runs]
    names = sorted(set.intersection(*map(set, tested)), key=lambda name: tested[0][name]["crps_ratio"])
    return {name: {metric: _spread([run[name][metric] for run in tested]) for metric in METRICS} for name in names}


def _name(row: records.Row) -> str:
    return f"{row['baseline']} {row['steps']}" if row["baseline"] in RIVALS else row["baseline"] or "chosen"


def spread_of_margins(runs: Sequence[Sequence[records.Row]]) -> dict[str, Any]:
    """crps_ratio on test of the chosen combination minus that of the best baseline of the same run, over all runs.

    `defaults` of the result: name of the best baseline of each run.
    """
    margins = [
        margin for margin in (table.margin_over_best_default(rows, "test") for rows in runs) if margin is not None
    ]
    assert len(margins) == len(runs)
    return {**_spread([margin.difference for margin in margins]), "defaults": [margin.default for margin in margins]}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": sd, "values": list(values)}


def _text(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.3f} +- {spread['sd']:.3f}"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "repeat.py"))
