"""Train the rivals of a search: models of the literature, on the same latents, with the network and budget of its best.

A rival (`rivals` of the config; formulas: `raypipe.sde.interpolants`) has the config of the best finalist of the joint
stage, or of the flow stage where no joint network was searched, but for what makes it that rival: u is an input, drawn
uniformly, and its loss is all that it is trained on. So network, noise in the given frames, batches, learning rate and
average of the weights are those of the winner. Its budget is that of the winner's final training (without a joint
network: of flow and diffusion together), counted in samples that pass the network: a step on the score of forecasts
passes one for each member, so a rival has more steps, in about the same time. It is not searched. There are as many
seeds as of a finalist, whose networks take turns in a forecast, or one if `evaluation.models` is `best`.
"""

import logging
from collections.abc import Mapping
from typing import Any

from raypipe import config
from raypipe.common.locks import file_lock
from raypipe.config import Component, Experiment, Rival
from raypipe.distributed.jobs import ComponentJob
from raypipe.distributed.training_job import finished
from raypipe.search.configured import finalist_values, refit_config, refit_name
from raypipe.search.keep import forget_training
from raypipe.search.parents import best_of
from raypipe.search.refits import train_in_one_run
from raypipe.search.stage import Stage
from raypipe.training.loop import DivergedError
from raypipe.workspace.layout import Workspace

logger = logging.getLogger(__name__)

CHECKED_STEPS = 4
"""Integration steps of the forecasts that early stopping scores, if the training data are few."""


def train_rivals(experiment: Experiment, workspace: Workspace, *, wandb: bool = False) -> None:
    """Train the rivals of a search whose stages are finished; those that are trained already are left as they are.

    Each is a Ray run of its own. One that diverges is left out, with a warning: it must not cost the evaluation.
    Raises ConfigError if a stage is not finished.
    """
    stage = Stage(experiment, workspace, "joint", wandb=wandb)
    for rival in experiment.rivals:
        jobs = rival_jobs(experiment, workspace, rival)
        with file_lock(workspace.folder / f"{rival}.lock"):
            try:
                if not all(map(finished, jobs)):
                    train_in_one_run(stage, f"rival-{rival}", jobs)
            except DivergedError as error:
                logger.warning("%s; the rival %s is left out of the evaluation", error, rival)
        for job in filter(finished, jobs):
            forget_training(stage, job.name)


def are_trained(experiment: Experiment, workspace: Workspace) -> bool:
    """Whether all rivals of the config are trained. Raises ConfigError if a stage is not finished."""
    return all(finished(job) for rival in experiment.rivals for job in rival_jobs(experiment, workspace, rival))


def rival_jobs(experiment: Experiment, workspace: Workspace, rival: Rival) -> list[ComponentJob]:
    """The trainings of a rival, one for each seed, named after it and the finalist whose network and budget it has.

    Raises ConfigError if a stage is not finished.
    """
    stages: tuple[Component, ...] = ("joint",) if workspace.finalists("joint").is_file() else ("flow", "diffusion")
    best = [best_of(workspace, stage).trial for stage in stages]
    values = [finalist_values(workspace, stage, trial) or {} for stage, trial in zip(stages, best, strict=True)]
    seeds = experiment.search.finalist_seeds if experiment.evaluation.models == "all" else 1
    jobs = []
    for seed in range(seeds):
        trained = [refit_config(experiment, s, v, seed) for s, v in zip(stages, values, strict=True)]
        steps = max(1, sum(each.train.samples for each in trained) // trained[0].train.batch_size)
        settings = config.replace(trained[0], **_changes(rival, steps))
        jobs.append(ComponentJob(settings, workspace, refit_name(f"{rival}-{best[0]}", seed)))
    return jobs


def _changes(rival: Rival, steps: int) -> Mapping[str, Any]:
    """What the config of a rival changes in that of the winner."""
    return {
        "train.component": "joint",
        "sde.noise": rival,
        "sde.zero_share": 0.0,
        "model.time_input": True,
        "train.loss": None,
        "train.score_share": 0.0,
        "train.forecast_frames": 1,
        "train.flow": None,
        "train.steps": steps,
        "train.warmup_steps": max(1, steps // 20),
        "evaluation.steps": [CHECKED_STEPS],
    }
