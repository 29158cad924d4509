"""The whole pipeline once a seed, and what the seeds agree on: `python experiments/repeat.py [--seeds 3]`.

Writes <storage>/<name>-seeds.json: test scores of the chosen combination and the baselines, mean and spread.
A second run goes on where the first stopped.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import pipeline

from raypipe import cli, records
from raypipe.workspace import Workspace, manifest, write_json

METRICS = ("crps_ratio", "crps_ratio_pixels", "psnr", "ssim", "spread_skill", "nfe_per_frame")


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser("repeat.py", "Run the pipeline once a seed; report mean and spread on test.")
    parser.add_argument("--seeds", type=cli.positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    args, overrides = cli.parse(parser, argv)
    experiment, storage = cli.experiment(args, overrides), cli.storage_root(args)
    rows = []
    for seed in range(args.seeds):
        workspace = Workspace(storage, f"{experiment.name}-seed{seed}")
        if not (workspace.best / "manifest.json").is_file():
            begun = (workspace.folder / "config.yaml").exists()
            fields = [f"--{name}={value}" for name, value in overrides.items()]
            config = ["--config", args.config] if args.config else []
            pipeline.main(
                [*config, *fields, "--storage", str(storage), "--name", workspace.name, "--seed", str(seed)]
                + (["--resume"] if begun else [])
            )
        rows.append(_test_scores(workspace))
    summary = {name: {metric: _spread([row[name][metric] for row in rows]) for metric in METRICS} for name in rows[0]}
    path = storage / f"{experiment.name}-seeds.json"
    write_json(path, manifest(experiment, summary=summary, runs=args.seeds))
    body = [[name, *(_text(scores[metric]) for metric in METRICS)] for name, scores in summary.items()]
    cli.say(f"\ntest, mean +- sd over {args.seeds} seeds:")
    cli.say(cli.table(body, ["", *METRICS]))
    cli.say(f"\nwritten  {path}")
    return 0


def _test_scores(workspace: Workspace) -> dict[str, records.Row]:
    """The test rows by name, best first."""
    rows = [r for r in records.read_rows(workspace.evaluation / "combinations.parquet") if r["split"] == "test"]
    return {r["baseline"] or "chosen": r for r in sorted(rows, key=lambda r: r["crps_ratio"])}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": sd, "values": list(values)}


def _text(spread: dict[str, Any]) -> str:
    return f"{spread['mean']:.3f} +- {spread['sd']:.3f}"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "repeat.py"))
