"""Score the combinations of the best flows, denoisers and diffusions: ``python -m raypipe.evaluate``.

All are scored on validation, side by side in Ray tasks. The best one and the baselines then meet the test
split, once. The winner goes to ``best/``, ready for `raypipe.load_predictor` and ``raypipe.generate``.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import ray
import torch

from raypipe import cli
from raypipe.combination import Combination, CombinationScorer, Result, combinations, published_combination
from raypipe.common import terminal
from raypipe.common.files import atomic_folder, atomic_path, write_json
from raypipe.config import COMPONENTS, ConfigError, Experiment
from raypipe.data.frames import to_float, to_uint8
from raypipe.distributed.connection import start_ray
from raypipe.distributed.failures import plain_errors
from raypipe.forecast.predictor import load_predictor
from raypipe.forecast.windows import choose_windows, read_window
from raypipe.metrics.ensemble import Score
from raypipe.report import BASELINES, write_report
from raypipe.search import records
from raypipe.search.finalists import Finalist, read_finalists
from raypipe.workspace.claims import latest
from raypipe.workspace.dataset import Sources
from raypipe.workspace.layout import Workspace
from raypipe.workspace.manifest import manifest

PROG = "raypipe.evaluate"
SAMPLES = 3
SAMPLE_MEMBERS = 3
SAMPLE_INTERPOLATE = 4

Split = Literal["val", "test"]
SPLIT_NAMES: dict[Split, str] = {"val": "validation", "test": "test"}
SCORED = ("crps_ratio", "minus published")
"""What `_scores` says, in the tables that a command prints."""


@dataclass(frozen=True)
class Handed:
    """What the three stages handed on."""

    flows: list[Finalist]
    denoisers: list[Finalist]
    diffusions: list[Finalist]

    @classmethod
    def read(cls, workspace: Workspace) -> "Handed":
        return cls(*(read_finalists(workspace, component) for component in COMPONENTS))


def run_evaluation(experiment: Experiment, workspace: Workspace, top_k: int) -> list[records.Row]:
    """Score, choose, test, and write `evaluation/` and `best/`; scores that stand already are kept.

    Returns the rows of combinations.parquet.
    """
    sources, handed = Sources(experiment, workspace), Handed.read(workspace)
    candidates = combinations(handed.flows, handed.denoisers, handed.diffusions, experiment, top_k)
    evaluation, table = experiment.evaluation, Table(workspace)
    defaults = [published_combination(handed.flows, handed.denoisers, handed.diffusions, n) for n in evaluation.steps]
    _score_split(sources, "val", [*candidates, *defaults], evaluation.windows, table, decode=False)
    ranked = sorted(candidates, key=lambda c: table.row("val", c)["crps_ratio"])
    published = min(defaults, key=lambda c: table.row("val", c)["crps_ratio"])
    finalists = [*ranked[: evaluation.finalists], published]
    _score_split(sources, "val", finalists, evaluation.windows, table, decode=True)

    chosen = table.fitted("val", ranked[0])
    alone = replace(
        chosen, denoiser=None, denoiser_model=None, diffusion=None, diffusion_model=None, beta=None, baseline="flow"
    )
    nothing = Combination(flow=None, denoiser=None, diffusion=None, steps=0)
    tested = [
        chosen,
        table.fitted("val", published),
        alone,
        replace(nothing, baseline="climatology"),
        replace(nothing, baseline="persistence"),
    ]
    _score_split(sources, "test", tested, evaluation.test_windows, table, decode=True)
    table.mark_chosen(chosen, published)
    keep_best(sources, chosen)
    save_samples(sources)
    return table.rows


class Table:
    """combinations.parquet: a row per combination and split, kept as scores come in."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.evaluation / "combinations.parquet"
        self._scores = workspace.evaluation / "scores"
        self.rows = records.read_rows(self._path)

    def row(self, split: Split, combination: Combination) -> records.Row:
        return next(r for r in self.rows if r["split"] == SPLIT_NAMES[split] and r["key"] == combination.key)

    def has(self, split: Split, combination: Combination, *, decoded: bool) -> bool:
        mine = [r for r in self.rows if r["split"] == SPLIT_NAMES[split] and r["key"] == combination.key]
        return bool(mine) and (not decoded or mine[0]["crps_ratio_pixels"] is not None)

    def fitted(self, split: Split, combination: Combination) -> Combination:
        """The combination with the beta that was fitted when it was scored."""
        return replace(combination, beta=self.row(split, combination)["beta"])

    def add(self, split: Split, result: Result) -> None:
        """Add or replace the combination's row."""
        c, score, pixels = result.combination, result.score, result.pixels
        records.save_score(self._folder(split, c.key), 0, score)
        kept = [r for r in self.rows if (r["split"], r["key"]) != (SPLIT_NAMES[split], c.key)]
        self.rows = [
            *kept,
            {
                "combination": len(kept),
                "key": c.key,
                "flow": c.flow,
                "denoiser": c.denoiser,
                "diffusion": c.diffusion,
                "alpha": c.alpha if c.denoiser else None,
                "beta": c.beta,
                "steps": c.steps or None,
                "solver": c.solver if c.steps else None,
                "split": SPLIT_NAMES[split],
                "baseline": c.baseline,
                "chosen": False,
                "crps_ratio": score.ratio.value,
                "crps_ratio_se": score.ratio.se,
                "difference": None,
                "difference_se": None,
                "behind_chosen": None,
                "behind_chosen_se": None,
                "crps_ratio_pixels": pixels.crps_ratio if pixels else None,
                "psnr": pixels.psnr if pixels else None,
                "ssim": pixels.ssim if pixels else None,
                "spread_skill": score.spread_skill,
                "nfe_per_frame": result.nfe_per_frame,
                "seconds_per_frame": result.seconds_per_frame,
                "crps_ratio_by_step": score.ratio_by_step.tolist(),
            },
        ]
        self.save()

    def mark_chosen(self, chosen: Combination, published: Combination) -> None:
        """Mark the winner, and pair every score with the published default's and the winner's, window by window."""
        for split in ("val", "test"):
            default, best = (records.read_score(self._folder(split, c.key), 0) for c in (published, chosen))
            for row in self.rows:
                if row["split"] != SPLIT_NAMES[split]:
                    continue
                row["chosen"] = row["key"] == chosen.key
                score = records.read_score(self._folder(split, row["key"]), 0)
                row |= _paired("difference", score, default) | _paired("behind_chosen", score, best)
        self.save()

    def save(self) -> None:
        records.write_rows(self._path, self.rows)

    def _folder(self, split: Split, key: str) -> Path:
        return self._scores / f"{SPLIT_NAMES[split]}-{key.replace('/', '_')}"


def _paired(name: str, score: Score | None, other: Score | None) -> records.Row:
    """The difference of two scores and its error as columns; null where they are not of the same windows."""
    gap = None
    if score is not None and other is not None and score.crps.shape == other.crps.shape:
        gap = score.minus(other)
    return {name: None if gap is None else gap.value, f"{name}_se": None if gap is None else gap.se}


def _score_split(
    sources: Sources, split: Split, wanted: Sequence[Combination], count: int, table: Table, *, decode: bool
) -> None:
    """Score in parallel tasks whatever the table lacks."""
    left = [c for c in wanted if not table.has(split, c, decoded=decode)]
    if not left:
        return
    search = sources.experiment.search
    task = ray.remote(num_cpus=search.cpus_per_trial, num_gpus=min(1.0, search.gpus_per_trial), max_retries=2)(_score)
    pending = {task.remote(sources, split, c, count, decode, search.cpus_per_trial): c for c in left}
    name = f"{'decode' if decode else 'score'} on {SPLIT_NAMES[split]}"
    with terminal.progress_bar(name, len(left), "combination") as bar:
        while pending:
            done, _ = ray.wait(list(pending))
            for reference in done:
                with plain_errors():
                    table.add(split, ray.get(reference))
                pending.pop(reference)
                bar.update()


def _score(sources: Sources, split: Split, combination: Combination, count: int, decode: bool, threads: int) -> Result:
    torch.set_num_threads(threads)
    scorer = CombinationScorer(sources, split, count)
    return scorer.score(scorer.fit(combination), decode=decode)


def keep_best(sources: Sources, chosen: Combination) -> None:
    """Copy the winner's models to `best/`, with a manifest that says how they work together."""
    workspace, experiment = sources.workspace, sources.experiment
    with atomic_folder(workspace.best) as folder:
        shutil.copytree(workspace.autoencoder, folder / "autoencoder")
        for component, model in (
            ("flow", chosen.flow_model),
            ("denoiser", chosen.denoiser_model),
            ("diffusion", chosen.diffusion_model),
        ):
            if model is not None:
                shutil.copytree(workspace.folder / component / model, folder / component)
        constant = [s * (chosen.beta or 1.0) for s in chosen.residual_std] if chosen.diffusion_model is None else None
        write_json(
            folder / "manifest.json",
            manifest(
                experiment,
                flow=chosen.flow,
                denoiser=chosen.denoiser,
                diffusion=chosen.diffusion,
                alpha=chosen.alpha,
                beta=1.0 if constant else chosen.beta,
                steps=chosen.steps,
                solver=chosen.solver,
                constant_std=constant,
                num_input_frames=experiment.model.num_input_frames,
                image_size=experiment.dataset.image_size,
                frame_stride=experiment.dataset.frame_stride,
                dataset=experiment.dataset.name,
            ),
        )


def save_samples(sources: Sources) -> None:
    """A few test clips, predicted by what stands in `best/`, for the report."""
    experiment, workspace = sources.experiment, sources.workspace
    predictor, shards = load_predictor(workspace.best), sources.frames("test")
    given, stride, horizon = (
        experiment.model.num_input_frames,
        experiment.dataset.frame_stride,
        experiment.evaluation.horizon,
    )
    clips, starts = choose_windows(
        shards.lengths, (given + horizon - 1) * stride + 1, SAMPLES, experiment.evaluation.seed
    )
    for number, (clip, start) in enumerate(zip(clips, starts, strict=True)):
        truth = torch.from_numpy(read_window(shards, clip, start, given + horizon, stride))
        context = to_float(truth[None, :given])
        predicted = predictor.predict(
            context, horizon, members=SAMPLE_MEMBERS, interpolate=SAMPLE_INTERPOLATE, seed=experiment.evaluation.seed
        )[0]
        whole = predicted[:, SAMPLE_INTERPOLATE - 1 :: SAMPLE_INTERPOLATE]
        with atomic_path(workspace.folder / "samples" / f"sample-{number}.npz") as path, path.open("wb") as file:
            np.savez_compressed(
                file,
                truth=truth.numpy(),
                prediction=to_uint8(whole).numpy(),
                interpolated=to_uint8(predicted[0]).numpy(),
                given=given,
                interpolate=SAMPLE_INTERPOLATE,
            )


def validation_table(rows: Sequence[records.Row]) -> str:
    """The combinations on validation, best first."""
    mine = sorted((r for r in rows if r["split"] == "validation"), key=lambda r: r["crps_ratio"])
    columns = ["flow", "denoiser", "diffusion", "alpha", "beta", "steps", "solver"]
    named = [{**r, "denoiser": r["denoiser"] or "none"} for r in mine]
    body = [[*(r[c] for c in columns), *_scores(r), r["spread_skill"], r["nfe_per_frame"], _note(r)] for r in named]
    return terminal.table(body, [*columns, *SCORED, "spread/skill", "calls", ""])


def test_table(rows: Sequence[records.Row]) -> str:
    """The chosen combination and the baselines on test."""
    mine = sorted((r for r in rows if r["split"] == "test"), key=lambda r: r["crps_ratio"])
    columns = ["crps_ratio_pixels", "psnr", "ssim", "spread_skill", "nfe_per_frame"]
    body = [[_note(r), *_scores(r), *(r[c] for c in columns), 1000 * r["seconds_per_frame"]] for r in mine]
    return terminal.table(body, ["test", *SCORED, "in pixels", "psnr", "ssim", "spread/skill", "calls", "ms/frame"])


def _scores(row: records.Row) -> list[str]:
    """The score, and its paired difference from the published default; each with its standard error."""
    ratio, gap = row["crps_ratio"], row["difference"]
    return [
        f"{ratio:.3f} +- {row['crps_ratio_se']:.3f}",
        "-" if gap is None else f"{gap:+.3f} +- {row['difference_se']:.3f}",
    ]


def _note(row: records.Row) -> str:
    return "chosen" if row["chosen"] else BASELINES.get(row["baseline"], "")


def verdict(rows: Sequence[records.Row]) -> str:
    """By how much the chosen combination beats the best default on test."""
    found = records.lead(rows, "test")
    if found is None:
        return "the chosen combination has no score on test"
    gap = f"{found.difference:+.3f} +- {found.se:.3f}"
    return f"chosen minus best default ({BASELINES[found.default]}), paired by window: {gap}"


def is_searched(workspace: Workspace) -> bool:
    """Whether all stages have handed on."""
    return all(workspace.finalists(component).is_file() for component in COMPONENTS)


def finish(experiment: Experiment, workspace: Workspace, top_k: int) -> None:
    """Evaluate, show the tables, write the report."""
    rows = run_evaluation(experiment, workspace, top_k)
    page = write_report(workspace)
    terminal.say(f"\nvalidation, {experiment.evaluation.windows} windows, horizon {experiment.evaluation.horizon}:")
    terminal.say(validation_table(rows))
    terminal.say(f"\ntest, {experiment.evaluation.test_windows} windows, once:")
    terminal.say(test_table(rows))
    terminal.say(verdict(rows))
    terminal.say(f"\nbest     {workspace.best}")
    terminal.say(f"report   {page}")
    terminal.say("next     python -m raypipe.generate")


def make_parser() -> cli.Parser:
    parser = cli.experiment_parser(PROG, "Score the combinations of the best flows, denoisers and diffusions.")
    parser.add_argument(
        "--top-k",
        type=cli.positive,
        metavar="K",
        help="finalists of each stage that are combined (default: search.top_k)",
    )
    parser.add_argument("--again", action="store_true", help="score everything anew, the test split too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args, overrides = cli.parse(make_parser(), argv)
    storage = cli.storage_root(args)
    if args.name:
        workspace = Workspace(storage, args.name)
        workspace.experiment()
    else:
        named = cli.experiment(args, overrides).name if args.config else None
        found = latest(storage, is_searched, like=named)
        if found is None:
            raise ConfigError(
                f"--storage: no finished search in {str(storage)!r}; run python experiments/pipeline.py first"
            )
        workspace = found
    experiment = cli.with_overrides(workspace.experiment(), overrides)
    Handed.read(workspace)
    if args.again:
        shutil.rmtree(workspace.evaluation, ignore_errors=True)
    terminal.say(f"evaluating {workspace.folder}")
    start_ray()
    finish(experiment, workspace, args.top_k or experiment.search.top_k)
    return 0


if __name__ == "__main__":
    from raypipe import evaluate

    raise SystemExit(cli.run(evaluate.main, PROG))
