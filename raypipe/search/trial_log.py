"""A Tune callback that writes trials.parquet and shows progress while a search runs."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from raypipe.config import Experiment
from raypipe.distributed.waiting import Waiting, waiting_for
from raypipe.search import finalists, records
from raypipe.search.default import default_trial
from raypipe.search.gauges import Gauges
from raypipe.search.live import SHOWN, Live, Running
from raypipe.search.searcher import EndedTrial
from raypipe.search.stage import Stage
from raypipe.training.monitor import read_metrics, steps_per_second


class TrialLog(tune.Callback):
    """Writes trials.parquet as results arrive, and shows the progress of the search.

    total: number of trials of the stage. done: number of trials that ended in earlier processes.

    Attributes, for this process only: busy: time that all trials spent training and scoring, in seconds. ended: number
    of trials that ended. failures: why trials failed, by name.
    """

    def __init__(self, stage: Stage, total: int, done: int) -> None:
        self._stage = stage
        self._path = stage.workspace.trials
        self._rows = records.read_rows(self._path)
        self._total, self._done = total, done
        self._configured: dict[str, Experiment] = {}
        self._live: Live | None = None
        self._gauges: Gauges | None = None
        self._last_update = 0.0
        self._trials: list[Any] = []
        self._waiting = Waiting(self._reason)
        self.busy = 0.0
        self.ended = 0
        self.failures: dict[str, str] = {}

    def catch_up(self, past: Sequence[EndedTrial]) -> None:
        """Complete the rows of trials that the study recorded as ended before an earlier process was killed."""
        changed = False
        for trial in past:
            name = trial.config["trial"]
            rows = {row["step"]: row for row in self._rows if row["trial"] == name}
            if rows and all(row["status"] != "running" for row in rows.values()):
                continue
            for step, objective in sorted(trial.scores.items()):
                if step not in rows:
                    self._rows.append(self._row(trial.config, {"train_step": step, "objective": objective}))
            if trial.error is not None and not rows and not trial.scores:
                self._rows.append(self._row(trial.config, {}))
            finished = max(trial.scores, default=0) >= self._stage.rungs[-1]
            self._end(name, "failed" if trial.error else "finished" if finished else "stopped", trial.error)
            changed = True
        if changed:
            records.write_rows(self._path, self._rows)

    def setup(self, *args: Any, **info: Any) -> None:
        """Make the progress bar and the gauges, late: Tune pickles callbacks, but these may not pickle."""
        self._live = Live(self._stage.component, self._total, self._done)
        self._gauges = Gauges(self._stage.workspace.name, self._stage.component)
        self._show()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Update the running trials and the gauges, and say what the search waits for, at most once a second."""
        if self._live is None or time.monotonic() - self._last_update < 1:
            return
        self._last_update = time.monotonic()
        running = [trial for trial in trials if trial.status == "RUNNING"]
        if self._live.terminal:
            self._live.show([self._running(trial) for trial in running])
        assert self._gauges is not None
        self._gauges.show(self._rows, len(running), sum(map(self._speed, running)))
        self._trials = running or [trial for trial in trials if trial.status == "PENDING"]
        self._waiting.look((self.ended, self.busy))

    def _reason(self) -> str:
        """What the search waits for: trials that run, with their steps, or resources for trials that do not."""
        search = self._stage.experiment.search
        count = max(1, len(self._trials))
        if search.workers_per_trial > 1:
            what = f"{count} trial{'s' * (count > 1)} of {search.workers_per_trial} workers"
        else:
            what = f"{count} trial{'s' * (count > 1)}"
        each = {"CPU": search.cpus_per_trial, "GPU": search.gpus_per_trial}
        shown = [self._running(trial) for trial in self._trials[:SHOWN] if trial.status == "RUNNING"]
        steps = ", ".join(f"{run.trial} at step {run.step} of {run.steps}" for run in shown)
        return waiting_for(what, each) + (f"; {steps}" if steps else "")

    def _speed(self, trial: Any) -> float:
        return steps_per_second(read_metrics(self._stage.workspace.run(self._stage.component, trial.config["trial"])))

    def _running(self, trial: Any) -> Running:
        stage, name = self._stage, trial.config["trial"]
        train = self._experiment(trial.config["values"]).train
        logged = read_metrics(stage.workspace.run(stage.component, name))
        objective = trial.last_result.get("objective")
        return Running(
            name, train.noise_std, train.loss, logged[-1]["step"] if logged else 0, stage.rungs[-1], objective
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Write the row of the rung, which replaces an earlier row of the same rung."""
        self.busy += result["time_this_iter_s"]
        if result["halt"]:
            return
        row = self._row(trial.config, result)
        key = (row["stage"], row["trial"], row["step"])
        self._rows = [r for r in self._rows if (r["stage"], r["trial"], r["step"]) != key] + [row]
        if result["failure"]:
            self.failures[row["trial"]] = result["failure"]
            self._end(row["trial"], "failed")
        elif result["train_step"] >= self._stage.rungs[-1]:
            self._end(row["trial"], "finished")
        self._write()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if trial.last_result.get("halt"):
            return
        if not any(row["trial"] == name and row["status"] in ("finished", "failed") for row in self._rows):
            self._end(name, "stopped")
        self._one_ended()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name, row = trial.config["trial"], self._row(trial.config, {})
        if not any(r["trial"] == name for r in self._rows):
            self._rows.append(row)
        self.failures[name] = _last_line(trial.error_file) or "the trial's process died"
        self._end(name, "failed", self.failures[name])
        self._one_ended()

    def close(self) -> None:
        if self._live is not None:
            self._live.close()
        if self._gauges is not None:
            self._gauges.show(self._rows, 0)

    def _one_ended(self) -> None:
        assert self._live is not None
        self.ended += 1
        self._live.ended()
        self._write()

    def _row(self, trial_config: Mapping[str, Any], result: Mapping[str, Any]) -> records.Row:
        stage, name, step = self._stage, trial_config["trial"], result.get("train_step", 0)
        objective = result.get("objective")  # known from the study even if the score file of the rung is missing
        values = _values(trial_config, result)
        row = records.rung_row(
            self._experiment(values),
            name,
            step,
            flow=stage.flow,
            score=records.read_score(stage.workspace.run(stage.component, name), step),
            default=records.read_score(stage.workspace.run(stage.component, default_trial(stage.component)), step),
        )
        return row | {
            "status": "running",
            "refit": False,
            "objective": objective if objective is not None and math.isfinite(objective) else None,
            "magnitude": result.get("magnitude"),
            "nfe_per_frame": result.get("nfe_per_frame"),
            "values": json.dumps(values),
            "exploited": result.get("exploited"),
            "seconds": result.get("seconds"),
            "error": result.get("failure"),
        }

    def _experiment(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment of a trial with these values; cached, since validation is slow for hundreds of trials."""
        key = json.dumps(values)
        if key not in self._configured:
            self._configured[key] = self._stage.configure(values)
        return self._configured[key]

    def _end(self, name: str, status: str, error: str | None = None) -> None:
        for row in self._rows:
            if row["trial"] == name and row["stage"] == self._stage.component:
                row["status"] = status
                row["error"] = row["error"] or error

    def _write(self) -> None:
        records.write_rows(self._path, self._rows)
        self._show()

    def _show(self) -> None:
        """Show the best trial so far and the number of failed trials."""
        mine = [row for row in self._rows if row["stage"] == self._stage.component and not row["refit"]]
        parts = []
        for top in finalists.last_rungs(mine, self._stage.component)[:1]:
            loss = f" {top.loss}" if top.loss else ""
            parts.append(f"best {top.objective:.3f} ({top.name}: s {top.noise_std:.3g}{loss})")
        failed = len({row["trial"] for row in mine if row["status"] == "failed"})
        if failed:
            parts.append(f"{failed} failed")
        if parts:
            assert self._live is not None
            self._live.tell(", ".join(parts))


def _values(trial_config: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial at a rung; under pbt they may differ from the proposed ones."""
    return dict(json.loads(result["values"]) if "values" in result else trial_config["values"])


def _last_line(path: str | None) -> str | None:
    if path is None or not Path(path).is_file():
        return None
    lines = [line for line in Path(path).read_text().splitlines() if line.strip()]
    return lines[-1] if lines else None
