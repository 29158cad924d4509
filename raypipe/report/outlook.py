"""How long a search still takes, and why its trials were stopped: estimates from the rows of its trials."""

import time
from collections.abc import Sequence

import numpy as np

from raypipe.report.state import Overview
from raypipe.search.budget import Budget, Pace, Work
from raypipe.search.progress import StageProgress
from raypipe.search.records import Row, is_finite
from raypipe.search.workload import evaluation_work, refit_jobs, refit_work


def seconds_left(overview: Overview) -> float | None:
    """Seconds until the search is finished, at the pace of its trials so far; None before the first rung of any.

    With `search.minutes`, at most those that are left of it while the search runs.
    """
    budget, search = Budget(None), overview.experiment.search
    for stage in overview.stages:
        pace = measured_pace([row for row in overview.rungs if row["stage"] == stage.component])
        if pace is not None:
            budget.measure(stage.component, 1, pace.step, pace.score)
    if not budget.measured:
        return None
    seconds, now, places = 0.0, time.time(), max(stage.places for stage in overview.stages)
    share = _share_trained(overview)
    for stage in overview.stages:
        if not stage.searched:
            for work in _stage_left(overview, stage, share, places):
                seconds += work.seconds(budget.pace(stage.component))
    if not overview.evaluated:
        paces = [budget.pace(stage.component) for stage in overview.stages]
        mean = Pace(*(sum(values) / len(paces) for values in zip(*((p.step, p.score) for p in paces), strict=True)))
        evaluation = evaluation_work(overview.experiment, places).seconds(mean)
        seconds += max(0.0, evaluation - _evaluating(overview, now))
    if search.minutes is None or overview.runner is None:
        return seconds
    return max(0.0, min(seconds, overview.began + 60 * search.minutes - now))


def measured_pace(rows: Sequence[Row]) -> Pace | None:
    """Seconds of a training step and of a score, fitted to the rungs of the trials of a stage; None without any.

    rows: of all rungs, whose `seconds` are those of the trial up to there.
    """
    rows = sorted((row for row in rows if not row["refit"] and row["step"] > 0), key=lambda row: row["step"])
    scores: dict[str, int] = {}
    done, seconds = [], []
    for row in rows:
        scores[row["trial"]] = scores.get(row["trial"], 0) + 1
        if is_finite(row.get("seconds")) and row["status"] != "failed":
            done.append((row["step"], scores[row["trial"]]))
            seconds.append(row["seconds"])
    if not seconds:
        return None
    step, score = np.linalg.lstsq(np.array(done, float), np.array(seconds), rcond=None)[0]
    if step >= 0 and score >= 0:
        return Pace(float(step), float(score))
    return Pace(sum(seconds) / sum(steps for steps, _ in done), 0.0)


def _share_trained(overview: Overview) -> float:
    """Steps of the trials that have ended, as a share of those of trials that are not stopped; 1 before any has."""
    stages = overview.experiment.search.stages
    shares = [
        min(1.0, row["step"] / stages[row["stage"]].steps)
        for row in overview.rows
        if row["status"] in ("finished", "stopped") and not row["refit"]
    ]
    return sum(shares) / len(shares) if shares else 1.0


def _stage_left(overview: Overview, stage: StageProgress, share: float, places: int) -> tuple[Work, Work]:
    """What is left of a stage: its trials, and the retraining of its finalists. share: see `_share_trained`."""
    component, experiment = stage.component, overview.experiment
    steps = experiment.search.stages[component].steps
    begun = {row["trial"]: row["step"] for row in overview.rows if row["status"] in ("running", "interrupted")}
    begun = {name: step for name, step in begun.items() if name in stage.states}
    at = {one.name: one.step for one in overview.running if one.component == component}
    left = stage.left * share * steps
    left += sum(max(0.0, share * steps - at.get(name, step)) for name, step in begun.items())
    together = max(1, min(places, stage.left + len(begun)))
    trials = Work(left / together, left / steps * experiment.search.rungs / together)
    refits = refit_work(experiment, component, places)
    retrained = sum(step for name, step in at.items() if name not in stage.states)
    whole = refit_jobs(experiment, component) * experiment.search.stages[component].refit_steps
    remains = max(0.0, 1 - retrained / whole) if whole else 1.0
    return trials, Work(refits.steps * remains, refits.scores, refits.fixed * (retrained == 0))


def _evaluating(overview: Overview, now: float) -> float:
    """Seconds since the evaluation began; 0 if it has not, or nothing runs."""
    if overview.runner is None or not all(stage.searched for stage in overview.stages):
        return 0.0
    files = [overview.workspace.finalists(stage.component) for stage in overview.stages]
    return now - max(overview.began, *(path.stat().st_mtime for path in files))


def duration(seconds: float) -> str:
    """Seconds in words, such as `40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for unit, size, digits in (("s", 1, 0), ("min", 60, 0), ("h", 3600, 1)):
        if seconds < {"s": 100, "min": 100 * 60, "h": 48 * 3600}[unit]:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def reasons(overview: Overview) -> dict[str, str]:
    """Why trials failed or were stopped, by name, as far as the rows tell.

    A stopped trial is placed among all trials of its stage that have a score at its last rung.
    """
    scores: dict[tuple[str, int], list[float]] = {}
    for row in overview.rungs:
        if not row["refit"] and is_finite(row["objective"]):
            scores.setdefault((row["stage"], row["step"]), []).append(row["objective"])
    found = {}
    for row in overview.rows:
        if row["status"] == "failed":
            found[row["trial"]] = " ".join(str(row.get("error") or "for an unknown reason").split())
        elif row["status"] == "stopped" and is_finite(row["objective"]):
            there = scores[row["stage"], row["step"]]
            place = sum(score < row["objective"] for score in there) + 1
            by = overview.experiment.search.scheduler
            found[row["trial"]] = f"{by}: place {place} of {len(there)} at step {row['step']}"
    return found
