"""The whole pipeline once a seed, and what the seeds agree on: `python experiments/repeat.py [--seeds 3]`.

Writes <storage>/<name>-seeds.json: test scores of the chosen combination and the baselines, mean and spread.
A second run goes on where the first stopped.
"""

import statistics
from collections.abc import Sequence

import pipeline

from raypipe import cli, records
from raypipe.config import COMPONENTS
from raypipe.finalists import read_finalists
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
    names = [name for name in rows[0] if all(name in row for row in rows)]
    summary = {
        name: {
            metric: _spread([row[name][metric] for row in rows])
            for metric in METRICS
            if rows[0][name][metric] is not None
        }
        for name in names
    }
    stages = {
        component: [
            [f.trial, f.noise_std, f.loss, f.objective]
            for f in read_finalists(Workspace(storage, f"{experiment.name}-seed0"), component)
        ]
        for component in COMPONENTS
    }
    path = storage / f"{experiment.name}-seeds.json"
    write_json(path, manifest(experiment, summary=summary, finalists_of_seed_0=stages, seeds_run=args.seeds))
    body = [
        [name, *(f"{v['mean']:.3f} +- {v['sd']:.3f}" if (v := summary[name].get(m)) else "-" for m in METRICS)]
        for name in names
    ]
    cli.say(f"\ntest, mean +- sd over {args.seeds} seeds:")
    cli.say(cli.table(body, ["", *METRICS]))
    cli.say(f"\nwritten  {path}")
    return 0


def _test_scores(workspace: Workspace) -> dict[str, records.Row]:
    rows = [r for r in records.read_rows(workspace.evaluation / "combinations.parquet") if r["split"] == "test"]
    return {
        "chosen" if row["chosen"] else str(row["baseline"]): row for row in sorted(rows, key=lambda r: r["crps_ratio"])
    }


def _spread(values: Sequence[float]) -> dict[str, object]:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "sd": sd, "values": list(values)}


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "repeat.py"))
