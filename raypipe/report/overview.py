"""What is known of a search at a moment, as text and as HTML: while it runs, after it was killed, once it is finished.

Everything is read from its files, without Ray and without torch, so it takes about a second.
"""

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from optuna.storages import BaseStorage

from raypipe.common import terminal
from raypipe.config import Experiment
from raypipe.search import records
from raypipe.search.configured import trial_config
from raypipe.search.progress import StageProgress, is_evaluated, read_study, stage_progress
from raypipe.search.records import Row
from raypipe.search.study import REASON, VALUES, known_trials, trial_name
from raypipe.training.monitor import read_metrics
from raypipe.workspace.claims import runner
from raypipe.workspace.layout import Workspace

SHOWN = 8
"""Number of trials in the table of the best, and of those that run, of which the text tells."""
REASONS = 4
"""Number of causes of failures of which the text tells."""


@dataclass(frozen=True)
class Overview:
    """A search at the moment at which its files were read.

    runner: the process that runs it; None if none does. rows: the row of each trial and each refit at its last rung,
    see `raypipe.search.records`, with its state of `StageProgress` as `status`; before the first rung with step 0 and
    no objective. at: training step that each running trial has logged. chosen: rows of combinations.parquet of the
    combination that the evaluation chose, one for each split. evaluated: whether `best/` is that of the present
    finalists.
    """

    workspace: Workspace
    experiment: Experiment
    runner: str | None
    stages: Sequence[StageProgress]
    rows: Sequence[Row]
    at: Mapping[str, int]
    chosen: Sequence[Row]
    evaluated: bool

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.evaluated and all(stage.searched for stage in self.stages)

    @property
    def state(self) -> str:
        """`running`, `finished` or `not running`."""
        return "running" if self.runner is not None else "finished" if self.finished else "not running"

    @property
    def best(self) -> list[Row]:
        """The rows with an objective, best first; without failed trials."""
        scored = [row for row in self.rows if row["status"] != "failed" and records.is_finite(row["objective"])]
        return sorted(scored, key=lambda row: row["objective"])


@dataclass(frozen=True)
class Table:
    """A table whose cells `terminal.cell` formats."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]


def read_overview(workspace: Workspace) -> Overview:
    """Read a search. Raises ConfigError if the folder holds no experiment, or if one of its tables cannot be read."""
    experiment = workspace.experiment()
    running, storage = runner(workspace), read_study(workspace.study)  # before the table, which is written after it
    last = records.last_rows(records.read_rows(workspace.trials))
    combinations = records.read_rows(workspace.evaluation / "combinations.parquet")
    stages = [
        stage_progress(workspace, storage, last, component, experiment.search, running is not None)
        for component in experiment.search.searched
    ]
    rows = [row for stage in stages for row in _rows(experiment, storage, stage, last)]
    at = {}
    for row in rows:
        if row["status"] == "running":
            logged = read_metrics(workspace.run(row["stage"], row["trial"]))
            at[row["trial"]] = logged[-1]["step"] if logged else 0
    return Overview(
        workspace,
        experiment,
        running,
        stages,
        rows,
        at,
        [row for row in combinations if row["chosen"]],
        is_evaluated(workspace, experiment.search),
    )


def _rows(experiment: Experiment, storage: BaseStorage, stage: StageProgress, last: Sequence[Row]) -> list[Row]:
    """The rows of a stage: its trials by name, then its refits."""
    mine = [row for row in last if row["stage"] == stage.component]
    written = {row["trial"]: row for row in mine if not row["refit"]}
    begun = {trial_name(stage.component, t.number): t.user_attrs for t in known_trials(storage, stage.component)}
    rows = []
    for name, state in stage.states.items():
        row = written.get(name)
        if row is None:
            values, reason = begun[name].get(VALUES), begun[name].get(REASON)
            configured = None if values is None else trial_config(experiment, stage.component, values)
            row = _begun(stage, name, configured)
            row |= {"values": None if values is None else json.dumps(values), "error": reason}
        rows.append(row | {"status": state})
    return rows + [row for row in mine if row["refit"]]


def _begun(stage: StageProgress, name: str, configured: Experiment | None) -> Row:
    """The row of a trial before its first rung. configured: None if its config is not known."""
    known = {"stage": stage.component, "trial": name, "step": 0, "objective": None}
    if configured is not None:
        known = records.rung_row(configured, name, 0, flow=None, score=None, default=None)
    return known | {"refit": False}


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
    lines = [("running", f"{name} at step {step} of {_steps(overview, name)}") for name, step in overview.at.items()]
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
        lines.append(("to do", "; ".join(_to_do(overview))))
    report = overview.workspace.evaluation / "report.html"
    if report.is_file():
        lines.append(("report", str(report)))
    step = following(overview)
    return lines if step is None else [*lines, ("next", step)]


def following(overview: Overview) -> str | None:
    """The command that goes on from here; None while the search runs."""
    if overview.runner is not None:
        return None
    folder = overview.workspace.folder
    if overview.finished:
        return f"python -m raypipe.generate --model {shlex.quote(str(folder))}"
    storage = shlex.quote(str(folder.parent))
    return f"python experiments/pipeline.py --storage {storage} --name {shlex.quote(folder.name)} --resume"


def _steps(overview: Overview, trial: str) -> int:
    stage = next(row["stage"] for row in overview.rows if row["trial"] == trial)
    return int(overview.experiment.search.stages[stage].steps)


def _failures(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """A line for each distinct cause, with the trials that failed for it."""
    causes: dict[str, list[str]] = {}
    for row in rows:
        if row["status"] == "failed":
            causes.setdefault(row.get("error") or "for an unknown reason", []).append(row["trial"])
    lines = [("failed", f"{', '.join(names)}: {' '.join(cause.split())}") for cause, names in causes.items()]
    more = len(lines) - REASONS
    return lines[:REASONS] + ([("failed", f"and for {more} more reasons, see trials.parquet")] if more > 0 else [])


def _to_do(overview: Overview) -> list[str]:
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
    return f"{overview.workspace.folder}: {overview.state}{by}"


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
