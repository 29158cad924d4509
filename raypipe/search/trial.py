"""A trial of a search: one configuration trained rung by rung, and scored at each by its forecast."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from raypipe import checkpoint
from raypipe.common.files import disk_is_full, standing
from raypipe.distributed.jobs import ComponentJob, component_label
from raypipe.distributed.trainer import Settings, train_jobs
from raypipe.forecast.component import ComponentScorer
from raypipe.metrics.ensemble import Score
from raypipe.search import records
from raypipe.search.stage import Stage
from raypipe.training.component import ComponentTraining
from raypipe.training.loop import DivergedError, Progress
from raypipe.training.monitor import Monitor
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels


class StageTrial(tune.Trainable):
    """A trial: trains to the next rung and scores itself there.

    It keeps its model under the experiment's folder, every `train.checkpoint_every` steps and at every rung, so
    a trial that is started again, by Ray, after a pause or by a resumed search, goes on from there. What stands there
    may be a copy of another trial (`Stage.take_over`); its values then hold, not those that were proposed.
    """

    def setup(self, config: dict[str, Any], stage: Stage | None = None) -> None:
        assert stage is not None
        torch.set_num_threads(stage.experiment.search.cpus_per_trial)
        self._stage = stage
        self._data = ExperimentData(stage.experiment, stage.workspace)
        self._scorers: dict[ParentModels, ComponentScorer] = {}
        self._record: Monitor | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial in the same process, which costs no start."""
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Whatever becomes of the trial, its record is complete."""
        record, self._record = self._record, None
        if record is not None:
            record.close()

    def _begin(self, config: dict[str, Any]) -> None:
        stage = self._stage
        self._name: str = config["trial"]
        self._folder = stage.workspace.run(stage.component, self._name)
        extra = checkpoint.read_meta(self._folder).extra if _stands(self._folder) else {}
        self._inherited = {key: extra[key] for key in ("values", "exploited") if key in extra}
        self._values: dict[str, Any] = extra.get("values", config["values"])
        self._experiment = stage.configure(self._values)
        self._parents = stage.parents(self._experiment)
        self._seconds = float(extra.get("seconds", 0.0))
        self._training = ComponentTraining(self._experiment, self._data, self._parents)
        self._unreported_rung: int | None = None
        if _stands(self._folder):
            self._training.restore(self._folder)
            step = self._training.step
            told = {*config["reported"], extra.get("exploited", {}).get("step")}
            # A search that was killed may have missed the rung; the end it must hear in any case.
            if step >= stage.rungs[-1] or (step in stage.rungs and step not in told):
                self._unreported_rung = step

    def step(self) -> dict[str, Any]:
        """To the next rung. A loss that is not a number ends the trial as failed, a full disk the search."""
        began = time.perf_counter()
        try:
            result = self._report_again(began) or self._to_next_rung(began)
            if result["done"]:
                self.cleanup()
            return result
        except DivergedError as error:
            return self._result(began, failure=str(error))
        except Exception as error:
            if not disk_is_full(error, self._folder):
                raise
            return self._result(began, halt=f"{self._folder}: no space left on the disk")

    def _report_again(self, began: float) -> dict[str, Any] | None:
        """The result of the rung at which the trial was cut off, if it was scored there already."""
        step, self._unreported_rung = self._unreported_rung, None
        if step is None:
            return None
        score = records.read_score(self._folder, step)
        extra = checkpoint.read_meta(self._folder).extra
        if score is None or "magnitude" not in extra:
            self._unreported_rung = step
            return None
        magnitude, nfe = float(extra["magnitude"]), int(extra["nfe_per_frame"])
        return self._result(began, score=score, magnitude=magnitude, nfe=nfe)

    def _to_next_rung(self, began: float) -> dict[str, Any]:
        rungs = self._stage.rungs
        target = self._unreported_rung or next(rung for rung in rungs if rung > self._training.step)
        self._unreported_rung = None
        if self._training.step < target:
            self._advance(target, began)
        if self._parents not in self._scorers:
            self._scorers = {self._parents: ComponentScorer(self._experiment, self._data, self._parents)}
        scorer, evaluation = self._scorers[self._parents], self._experiment.evaluation
        scored = scorer(self._stage.component, self._training.model, evaluation)
        if not math.isfinite(scored.score.ratio.value):
            return self._result(began, failure="the forecast is not finite")
        records.save_score(self._folder, target, scored.score)
        self._open_monitor().score(target, scored.score.ratio.value)
        result = self._result(began, score=scored.score, magnitude=scored.magnitude, nfe=scored.nfe_per_frame)
        self._seconds = result["seconds"]
        self._training.save(
            self._folder,
            residual_std=list(scored.residual_std),
            extra=self._inherited
            | {"magnitude": scored.magnitude, "nfe_per_frame": scored.nfe_per_frame, "seconds": self._seconds},
        )
        return result

    def _advance(self, target: int, began: float) -> None:
        search = self._stage.experiment.search
        if search.workers_per_trial > 1:
            self._advance_together(target)
            return
        training, every = self._training, self._experiment.train.checkpoint_every
        monitor = self._open_monitor()

        def report(progress: Progress) -> None:
            monitor.log(vars(progress))

        while training.step < target:
            stop = min(target, (training.step // every + 1) * every)
            training.advance(stop, report, every=max(1, target // 10))
            if stop < target:
                seconds = self._seconds + time.perf_counter() - began
                training.save(self._folder, extra=self._inherited | {"seconds": seconds})

    def _open_monitor(self) -> Monitor:
        """One for all rungs."""
        if self._record is None:
            label = component_label(self._experiment, self._stage.workspace) if self._stage.wandb else None
            self._record = Monitor(self._folder, self._training.step, wandb=label)
        return self._record

    def _advance_together(self, target: int) -> None:
        """Under a TorchTrainer of the trial's own workers."""
        self.cleanup()  # they write the record meanwhile
        search = self._stage.experiment.search
        job = TrialJob(self._experiment, self._stage.workspace, self._name, self._parents, target)
        train_jobs(
            [job],
            Settings(
                storage=self._stage.workspace.ray / "trials",
                name=f"{self._name}-{target}",
                num_workers=search.workers_per_trial,
                use_gpu=search.gpus_per_trial > 0,
                cpus_per_worker=search.cpus_per_trial,
                start_from=self._folder if _stands(self._folder) else None,
                show_progress=False,
                wandb=self._stage.wandb,
            ),
        )
        self._training.restore(self._folder)

    def _result(
        self,
        began: float,
        *,
        score: Score | None = None,
        magnitude: float | None = None,
        nfe: int | None = None,
        failure: str | None = None,
        halt: str | None = None,
    ) -> dict[str, Any]:
        last, step = self._stage.rungs[-1], self._training.step
        return {
            "objective": math.inf if score is None else score.ratio.value,
            "train_step": step if failure is None else max(step, last),
            "failure": failure,
            "halt": halt,
            "trial": self._name,
            "values": json.dumps(self._values),
            "exploited": self._donor(step),
            "magnitude": magnitude,
            "nfe_per_frame": nfe,
            "seconds": self._seconds + time.perf_counter() - began,
            "noise_std": self._experiment.train.noise_std,
            "done": bool(failure or halt) or step >= last,
        }

    def _donor(self, step: int) -> str | None:
        """The trial whose weights this one took over since the rung before `step`."""
        taken = self._inherited.get("exploited", {"step": None})
        before = max((rung for rung in self._stage.rungs if rung < step), default=None)
        return str(taken["trial"]) if before is not None and taken["step"] == before else None

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing, when a trial pauses: `step` has kept the model under the experiment's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing, when it goes on: `setup` and `reset_config` have taken it from there."""


@dataclass(frozen=True)
class TrialJob(ComponentJob):
    """A trial's way to its next rung, under a TorchTrainer."""

    until: int = 0

    @property
    def steps(self) -> int:
        return self.until


def _stands(folder: Path) -> bool:
    return (standing(folder) / "config.json").is_file()
