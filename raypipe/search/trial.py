"""The Ray Tune trainable of the search."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from ray import tune

from raypipe import config
from raypipe.distributed.jobs import ComponentJob
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.search.stage import Stage
from raypipe.search.trial_run import ScorerCache, TrialRun, model_exists
from raypipe.workspace.dataset import ExperimentData


class StageTrial(tune.Trainable):
    """Runs trials of a stage, one after the other, in one process; `trial_run.TrialRun` implements a trial.

    The config is {"trial": name, "values": config fields by dotted name, "reported": steps of recorded rungs}; a result
    is a `TrialResult` as a dict.
    """

    def setup(self, config: dict[str, Any], stage: Stage | None = None) -> None:
        assert stage is not None
        torch.set_num_threads(stage.experiment.search.cpus_per_trial)
        self._stage = stage
        self._data = ExperimentData(stage.experiment, stage.workspace)
        self._score = ScorerCache(self._data)
        self._run: TrialRun | None = None
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self._run = TrialRun(self._stage, self._data, config["trial"], config["values"], config["reported"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Switch to another trial, so that Tune need not start a new process."""
        self.cleanup()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train to the next rung."""
        assert self._run is not None
        together = self._stage.experiment.search.workers_per_trial > 1
        return asdict(self._run.next_rung(self._score, advance_together if together else None))

    def cleanup(self) -> None:
        if self._run is not None:
            self._run.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Do nothing when a trial pauses: `step` has saved the model in the experiment's folder."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Do nothing: `setup` and `reset_config` have loaded the model from the experiment's folder."""


def advance_together(run: TrialRun, target: int) -> None:
    """Train a trial to a step under a TorchTrainer with `search.workers_per_trial` workers."""
    run.close()  # only the workers may write the metrics from here on
    stage, search = run.stage, run.stage.experiment.search
    experiment = config.replace(run.experiment, **{"train.validate_every": 0})  # trials are scored at their rungs
    job = TrialJob(experiment, stage.workspace, run.name, run.parents, target)
    settings = Settings(
        storage=stage.workspace.ray / "trials",
        name=f"{run.name}-{target}",
        num_workers=search.workers_per_trial,
        use_gpu=search.gpus_per_trial > 0,
        cpus_per_worker=search.cpus_per_trial,
        start_from=run.folder if model_exists(run.folder) else None,
        show_progress=False,
        wandb=stage.wandb,
    )
    train_jobs([job], settings)
    run.training.restore(run.folder)


@dataclass(frozen=True)
class TrialJob(ComponentJob):
    """The part of a trial's training that ends at step `until`."""

    until: int = 0

    @property
    def steps(self) -> int:
        return self.until
