"""What is known of a search at a moment, as text and as HTML."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from raypipe.common import terminal
from raypipe.report.outlook import duration, seconds_left
from raypipe.report.state import Overview, Training
from raypipe.search.records import Row
from raypipe.workspace import bucket

SHOWN = 8
"""Number of trials in the table of the best, and of those that run, of which the text tells."""
REASONS = 4
"""Number of causes of failures of which the text tells."""


@dataclass(frozen=True)
class Table:
    """A table whose cells `terminal.cell` formats."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def stage_table(overview: Overview) -> Table:
    """Number of trials of each stage by state, and whether its finalists are retrained."""
    begun = "running" if overview.runner is not None else "interrupted"
    rows = []
    for stage in overview.stages:
        counts, ended = stage.counts, not stage.left and not stage.counts["running"]
        finalists = "retrained" if stage.searched else "retraining" if overview.runner and ended else "-"
        name = f"{stage.component} (ended early)" if stage.early else stage.component
        rows.append(
            [name, counts["finished"], counts["stopped"], counts["failed"], counts[begun], stage.left, finalists]
        )
    return Table(["stage", "finished", "stopped", "failed", begun, "left", "finalists"], rows)


def best_table(overview: Overview) -> Table:
    """The best trials and refits of all stages, which are scored on the same windows."""
    rows: list[list[object]] = [
        [
            row["trial"],
            "retrained" if row["refit"] else row["status"],
            row["step"],
            _with_error(row, "objective"),
            _with_error(row, "difference", sign="+"),
            row["noise_std"],
            row["loss"],
            None if row["learning_rate"] is None else f"{row['learning_rate']:.3g}",
        ]
        for row in overview.best[:SHOWN]
    ]
    return Table(["best", "status", "step", "crps_ratio", "minus default", "noise", "loss", "learning rate"], rows)


def _with_error(row: Row, key: str, sign: str = "") -> str | None:
    value, error = row.get(key), row.get(f"{key}_se")
    if value is None or not math.isfinite(value):
        return None
    return f"{value:{sign}.3f}" + (f" +- {error:.3f}" if error is not None and math.isfinite(error) else "")


def facts(overview: Overview) -> list[tuple[str, str]]:
    """What else there is to say, each with a word for it: what runs, failed, was chosen, is to do, and how to go on."""
    lines = [("running", _where(one)) for one in overview.running]
    lines = lines[:SHOWN] + _failures(overview.rows)
    for row in overview.chosen[:1]:
        parts = [f"{name} {row[name]}" for name in ("flow", "denoiser", "diffusion") if row[name] is not None]
        lines.append(("chosen", ", ".join(parts)))
    for row in overview.chosen:
        pixels = row.get("crps_ratio_pixels")
        lost = ", no better than repeating the last frame" if pixels is not None and not pixels < 1 else ""
        shown = "" if pixels is None else f", in pixels {pixels:.3f}{lost}"
        lines.append((row["split"], f"crps_ratio {_with_error(row, 'crps_ratio')}{shown}"))
    if not overview.finished:
        lines.append(("to do", "; ".join(to_do(overview))))
        seconds = seconds_left(overview)
        if seconds is not None:
            lines.append(("left", f"about {duration(seconds)}, at the pace so far"))
    report = overview.workspace.evaluation / "report.html"
    if report.is_file():
        lines.append(("report", bucket.shown(overview.workspace.storage, report)))
    step = following(overview)
    return lines if step is None else [*lines, ("next", step)]


def _where(training: Training) -> str:
    trained = ", not scored yet" if training.step >= training.steps else ""
    return f"{training.name} at step {training.step} of {training.steps}{trained}"


def following(overview: Overview) -> str | None:
    """The command that goes on from here; None while the search runs."""
    if overview.runner is not None:
        return None
    folder = overview.workspace.folder
    if overview.finished:
        return f"python -m raypipe.generate --model {shlex.quote(bucket.shown(folder.parent, folder))}"
    return resume_command(overview)


def resume_command(overview: Overview) -> str:
    """The command that goes on with a search that has been killed, or has more to do."""
    folder = overview.workspace.folder
    storage = shlex.quote(bucket.shown(folder.parent))
    return f"python experiments/pipeline.py --storage {storage} --name {shlex.quote(folder.name)} --resume"


def _failures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """A line for each distinct cause, with the trials that failed for it."""
    causes: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "failed":
            causes.setdefault(row.get("error") or "for an unknown reason", []).append(row["trial"])
    lines = [("failed", f"{', '.join(names)}: {' '.join(cause.split())}") for cause, names in causes.items()]
    more = len(lines) - REASONS
    return lines[:REASONS] + ([("failed", f"and for {more} more reasons, see trials.parquet")] if more > 0 else [])


def to_do(overview: Overview) -> list[str]:
    left = []
    for stage in overview.stages:
        if not stage.searched:
            count = stage.left + stage.counts["running"] + stage.counts["interrupted"]
            trials = [f"{count} trial{'s' * (count != 1)}"] if count else []
            left.append(f"{stage.component}: {', '.join([*trials, 'retraining of the finalists'])}")
    return left if overview.evaluated and not left else [*left, "evaluation"]


def headline(overview: Overview) -> str:
    """The folder, and whether the search runs."""
    by = "" if overview.runner is None else f" ({overview.runner})"
    workspace = overview.workspace
    return f"{bucket.shown(workspace.storage, workspace.folder)}: {overview.state}{by}"


def as_text(overview: Overview) -> str:
    """The overview for a terminal."""
    parts = [headline(overview)]
    for table in (stage_table(overview), best_table(overview)):
        parts.append(terminal.table(table.rows, table.header) if table.rows else "no trial has a score yet")
    said = facts(overview)
    width = max((len(word) for word, _ in said), default=0)
    parts.append("\n".join(f"{word:<{width}}  {text}" for word, text in said))
    return "\n\n".join(parts)


def as_html(overview: Overview) -> str:
    """The overview for a notebook."""
    parts = [f"<p><b>{escape(headline(overview))}</b></p>"]
    for table in (stage_table(overview), best_table(overview)):
        head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(terminal.cell(value))}</td>" for value in row) + "</tr>"
            for row in table.rows
        )
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
    parts += [f"<p>{escape(word)}: {escape(text)}</p>" for word, text in facts(overview)]
    return "\n".join(parts)
