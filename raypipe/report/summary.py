"""The last step of a search: evaluate it, write the report and print the tables."""

from collections.abc import Sequence

from raypipe.common import terminal
from raypipe.config import Experiment
from raypipe.evaluation import choice, table
from raypipe.evaluation.external import Scored, Scores
from raypipe.evaluation.perceptual.efflite0 import PACKAGE
from raypipe.evaluation.protocol import in_words, read_protocol
from raypipe.evaluation.rules import Task
from raypipe.evaluation.run import run_evaluation
from raypipe.evaluation.table import BASELINES
from raypipe.forecast.ceiling import read_ceiling
from raypipe.report.page import write_report
from raypipe.report.tables import describe, flow_name, with_steps
from raypipe.search import records
from raypipe.search.budget import Budget
from raypipe.search.early import left_out
from raypipe.workspace.layout import Workspace

SCORED = ("crps_ratio", "minus default")
"""Headers of the columns that `_scores` returns."""


def validation_table(rows: Sequence[records.Row]) -> str:
    """Text table of the combinations on validation, best first. rows: rows of combinations.parquet."""
    mine = sorted((r for r in rows if r["split"] == "validation"), key=lambda r: r["crps_ratio"])
    columns = ["flow", "denoiser", "diffusion", "alpha", "beta", "steps", "solver"]
    named = [{**r, "flow": flow_name(r), "denoiser": r["denoiser"] or "none"} for r in mine]
    body = [[*(r[c] for c in columns), *_scores(r), r["spread_skill"], r["nfe_per_frame"], _note(r)] for r in named]
    return terminal.table(body, [*columns, *SCORED, "spread/skill", "NFE", ""])


def test_table(rows: Sequence[records.Row]) -> str:
    """Text table of the chosen combination and the baselines on test, best first."""
    mine = sorted((r for r in rows if r["split"] == "test"), key=lambda r: r["crps_ratio"])
    shown = ["crps_ratio_pixels", "energy_ratio_pixels", "bodies_kept", "psnr", "ssim", "spread_skill"]
    columns = [*shown, "nfe_per_frame"]
    body = [[_note(r), *_scores(r), *(r[c] for c in columns), 1000 * r["seconds_per_frame"], _seconds(r)] for r in mine]
    names = ["in pixels", "energy", "bodies kept", "psnr", "ssim", "spread/skill", "NFE", "ms/frame", "training s"]
    return terminal.table(body, ["test", *SCORED, *names])


def perceptual_table(rows: Sequence[records.Row]) -> str:
    """Text table of the perceptual scores on test, and of the floor; a line how to get them if there are none."""
    mine = sorted((r for r in rows if r["split"] == "test"), key=lambda r: r["crps_ratio"])
    shown = [name for name in PERCEPTUAL if any(row[name] is not None for row in mine)]
    missing = "" if "efflite0_distance" in shown else f"no efflite0 scores: pip install {PACKAGE} to have them"
    if not shown:
        return missing
    body = [[_note(r), *(r[name] for name in shown)] for r in mine]
    body.append(["true clips of training", *(mine[0].get(f"{name}_floor") for name in shown)])
    return terminal.table(body, ["test", *(PERCEPTUAL[name] for name in shown)]) + (missing and f"\n{missing}")


def _scores(row: records.Row) -> list[str]:
    """crps_ratio, and its paired difference from the default, each with its standard error."""
    ratio, gap = row["crps_ratio"], row["difference"]
    return [
        f"{ratio:.3f} +- {row['crps_ratio_se']:.3f}",
        "-" if gap is None else f"{gap:+.3f} +- {row['difference_se']:.3f}",
    ]


def _seconds(row: records.Row) -> int | None:
    return None if row["training_seconds"] is None else round(row["training_seconds"])


def _note(row: records.Row) -> str:
    return "chosen" if row["chosen"] else describe(row) if row["baseline"] else ""


PERCEPTUAL = {
    "efflite0_distance": "efflite0 distance",
    "efflite0_frechet": "efflite0 Frechet",
    "lpips": "LPIPS",
    "fvd": "FVD",
    "jedi": "JEDi",
}
PIXELS = {
    "crps_ratio_pixels": "in pixels",
    "energy_ratio_pixels": "energy",
    "variogram_ratio_pixels": "variogram",
    "bodies_kept": "bodies kept",
    "psnr": "psnr",
    "ssim": "ssim",
    **PERCEPTUAL,
}
"""Scores of decoded frames, and the headers of their columns."""


def protocol_table(name: str, scored: Scored, beside: Sequence[records.Row]) -> str:
    """Text table of what was scored under a protocol, the last frame repeated, and `beside`, rows of its evaluation."""
    body: list[list[object]] = [[name, *(_mean(scored.scores, key) for key in PIXELS)]]
    body += [[_note(row) or "candidate", *(row[key] for key in PIXELS)] for row in beside]
    if not any(row["baseline"] == "persistence" for row in beside):
        body.append(["last frame repeated", *(_mean(scored.persistence, key) for key in PIXELS)])
    shown = [i for i in range(len(PIXELS) + 1) if any(row[i] is not None for row in body)]
    header = [f"{scored.members} members", *PIXELS.values()]
    return terminal.table([[row[i] for i in shown] for row in body], [header[i] for i in shown])


def _mean(scores: Scores, key: str) -> float | str | None:
    """The mean of a score over repeats, with its standard deviation if there are several."""
    found = scores.get(key, {"mean": None, "sd": None})
    mean, sd = found["mean"], found["sd"]
    return mean if mean is None or sd is None else f"{mean:.3f} +- {sd:.3f}"


def evaluated_rows(task: Task) -> list[records.Row]:
    """The rows of the evaluation that wrote a protocol, on its split, with scores in pixels; best first."""
    rows = records.read_rows(task.protocol.path.parent / "combinations.parquet")
    mine = [row for row in rows if row["split"] == task.rules.split and row["crps_ratio_pixels"] is not None]
    return sorted(mine, key=lambda row: row["crps_ratio_pixels"])


def verdict(rows: Sequence[records.Row]) -> str:
    """A line with the margin of the chosen combination over the best baseline on test."""
    found = table.margin_over_best_default(rows, "test")
    if found is None:
        return "the chosen combination has no score on test"
    gap, name = f"{found.difference:+.3f} +- {found.se:.3f}", with_steps(BASELINES[found.default], found.steps)
    return f"chosen minus best baseline ({name}), crps_ratio, paired by window: {gap}"


def finish(experiment: Experiment, workspace: Workspace, top_k: int, budget: Budget | None = None) -> None:
    """Evaluate a search, write the report and print the tables, and what `search.minutes` and `.patience` left out.

    top_k: see `raypipe.evaluation.combinations`. budget: the time of the command, if the search has one.
    """
    rows = run_evaluation(experiment, workspace, top_k)
    page = write_report(workspace)
    terminal.say(f"\nvalidation, {experiment.evaluation.windows} windows, horizon {experiment.evaluation.horizon}:")
    terminal.say(validation_table(rows))
    protocol = read_protocol(workspace)
    assert protocol is not None
    terminal.say(in_words(protocol, "validation"))
    terminal.say(f"\ntest, {experiment.evaluation.test_windows} windows:")
    terminal.say(test_table(rows))
    terminal.say(perceptual_table(rows))
    terminal.say(in_words(protocol, "test"))
    terminal.say(verdict(rows))
    lines = [left_out(workspace, component, experiment.search) for component in experiment.search.searched]
    lost = choice.verdict(rows, read_ceiling(workspace))
    against = choice.against_rivals(rows)
    for line in [lost, against and against.replace("±", "+-"), *lines, None if budget is None else budget.overrun()]:
        if line is not None:
            terminal.say(line)
    terminal.say(f"\nbest     {workspace.best}")
    terminal.say(f"report   {page}")
    terminal.say("next     python -m raypipe.generate")
