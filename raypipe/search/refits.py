"""Retrain the finalists of a stage at full length with several seeds, and rank them."""

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import ray
import torch

from raypipe import checkpoint, config
from raypipe.common import terminal
from raypipe.config import Evaluation
from raypipe.distributed.capacity import alive
from raypipe.distributed.failures import plain_errors
from raypipe.distributed.jobs import ComponentJob, run_settings
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.forecast.component import ComponentScore, ComponentScorer
from raypipe.metrics.ensemble import Score
from raypipe.search import records
from raypipe.search.configured import finalist_values, refit_config, refit_name
from raypipe.search.default import DEFAULT_DIFFUSION, default_trial, is_default
from raypipe.search.finalists import NO_DENOISER, Finalist, Trial
from raypipe.search.stage import Stage
from raypipe.search.study import ended_trials
from raypipe.training.early_stopping import kept_early
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels


def refit(stage: Stage, chosen: Sequence[Trial]) -> list[Finalist]:
    """Retrain the chosen trials and the default at full length; finished refits are not repeated.

    Returns the finalists, best first.
    """
    jobs = _jobs(stage, chosen)
    trials = ended_trials(stage.workspace.study, stage.component)
    train_in_one_run(stage, f"{stage.component}-refit-{trials}", [job for group in jobs.values() for job in group])
    return _rank(stage, chosen, jobs)


def train_in_one_run(stage: Stage, name: str, jobs: Sequence[ComponentJob]) -> None:
    """Train jobs in one Ray run. name: first part of its name; the rest depends on the jobs.

    An interrupted Ray run resumes under its name. A finished one cannot be extended, so other jobs need another name.
    """
    digest = zlib.crc32(" ".join(job.name for job in jobs).encode())
    train_jobs(jobs, _settings(stage, f"{name}-{digest:08x}", len(jobs)))
    for job in jobs:
        if (line := kept_early(job.folder)) is not None:
            terminal.say(line)


def _settings(stage: Stage, name: str, jobs: int) -> Settings:
    """Settings that use every worker of the cluster, one job per worker, if there are at least as many jobs as workers.

    With fewer jobs, the train.num_workers workers train each job together. jobs: number of jobs.
    """
    experiment = stage.experiment
    use_gpu = experiment.search.gpus_per_trial > 0
    workers = max(1, alive().room({"CPU": experiment.train.cpus_per_worker, "GPU": float(use_gpu)}))
    settings = run_settings(experiment, stage.workspace, name, use_gpu=use_gpu, wandb=stage.wandb)
    return dataclasses.replace(settings, num_workers=workers, side_by_side=True) if jobs >= workers else settings


def _jobs(stage: Stage, chosen: Sequence[Trial]) -> dict[str, list[ComponentJob]]:
    """The training jobs of each chosen trial and of the default, by trial name, one per seed."""
    component, default = stage.component, default_trial(stage.component)
    names = [trial.name for trial in chosen]
    if component in ("flow", "denoiser") and finalist_values(stage.workspace, component, default) is not None:
        names.append(default)
    if component == "diffusion":
        names.append(DEFAULT_DIFFUSION)
    seeds = range(stage.experiment.search.finalist_seeds)
    return {name: [_refit(stage, name, seed) for seed in seeds] for name in dict.fromkeys(names)}


def _refit(stage: Stage, name: str, seed: int) -> ComponentJob:
    values = finalist_values(stage.workspace, stage.component, name) or {}
    experiment = refit_config(stage.experiment, stage.component, values, seed)
    return ComponentJob(experiment, stage.workspace, refit_name(name, seed), stage.parents(experiment))


def _rank(stage: Stage, chosen: Sequence[Trial], refit: Mapping[str, Sequence[ComponentJob]]) -> list[Finalist]:
    """Score all refits in parallel and rank the configurations by their mean objective over seeds.

    Configurations within a standard error of the best are scored again on more windows and members, and ranked first,
    by the new scores. This is done for the refits only, since they determine the model that the next stages use.
    """
    none = stage.component == "denoiser"
    scored = _score_all(stage, [job for group in refit.values() for job in group], with_none=none)
    _record(stage, refit, scored)
    groups = {**refit, **({NO_DENOISER: ()} if none else {})}
    models = {name: [job.name for job in group] or [name] for name, group in groups.items()}
    candidates = {trial.name for trial in chosen} | {NO_DENOISER}
    rivals = rivals_of({name: [scored[m].score for m in models[name]] for name in groups if name in candidates})
    closer: dict[str, ComponentScore] = {}
    if len(rivals) > 1:
        again = [job for name in rivals for job in groups[name]]
        closer = _score_all(_more_windows(stage), again, with_none=NO_DENOISER in rivals)
    finalists = []
    for name, group in groups.items():
        rescored = [closer[m] for m in models[name] if m in closer]
        finalists.append(_finalist(stage, name, group, [scored[m] for m in models[name]], rescored))
    bound = min(f.objective for f in finalists) + stage.experiment.search.margin
    finalists = [dataclasses.replace(f, handed_on=f.trial in candidates and f.objective <= bound) for f in finalists]
    finite = [f for f in finalists if math.isfinite(f.objective) or f.published]
    return sorted(finite, key=lambda f: (f.objective if f.closer is None else -math.inf, f.closer or 0.0))


def _finalist(
    stage: Stage,
    name: str,
    jobs: Sequence[ComponentJob],
    scores: Sequence[ComponentScore],
    closer: Sequence[ComponentScore],
) -> Finalist:
    """Make a finalist from the scores of its seeds; the best seed is chosen by `closer`, if given.

    closer: scores on more windows and members; empty if the configuration was not scored again.
    """
    component = stage.component
    objectives = tuple(s.score.ratio.value for s in scores)
    final = [s.score.ratio.value for s in closer] or list(objectives)
    best = min(range(len(final)), key=lambda i: final[i])
    best_score = (closer or scores)[best]
    train = jobs[best].experiment.train if jobs else None
    return Finalist(
        trial=name,
        model=jobs[best].name if jobs else name,
        objective=sum(objectives) / len(objectives),
        objectives=objectives,
        magnitude=best_score.magnitude,
        residual_std=best_score.residual_std,
        noise_std=0.0 if train is None else train.noise_std,
        loss=None if train is None else train.loss,
        flow=None if train is None else train.flow,
        published=is_default(name) and component != "joint" and (component != "diffusion" or name == DEFAULT_DIFFUSION),
        closer=sum(final) / len(final) if closer else None,
        models=tuple(jobs[i].name for i in sorted(range(len(jobs)), key=lambda i: final[i])),
    )


def rivals_of(scores: Mapping[str, Sequence[Score]]) -> list[str]:
    """Names of the best configuration and of those within a standard error of it, best first.

    scores: for each configuration, the scores of its seeds. They are averaged over seeds; the standard error is that of
    the difference from the best, paired by window.
    """
    means = {
        name: dataclasses.replace(s[0], crps=np.mean([score.crps for score in s], 0)) for name, s in scores.items()
    }
    finite = sorted((n for n in means if math.isfinite(means[n].ratio.value)), key=lambda n: means[n].ratio.value)
    gaps = {name: means[name].minus(means[finite[0]]) for name in finite[1:]}
    return finite[:1] + [name for name, gap in gaps.items() if not gap.value > gap.se]


def _more_windows(stage: Stage) -> Stage:
    """The stage with twice the members and four times the windows (or all of them), which halves the standard error."""
    evaluation = stage.experiment.evaluation
    more = {"evaluation.windows": 4 * evaluation.windows, "evaluation.members": 2 * evaluation.members}
    return dataclasses.replace(stage, experiment=config.replace(stage.experiment, **more))


def _score_all(stage: Stage, jobs: Sequence[ComponentJob], *, with_none: bool) -> dict[str, ComponentScore]:
    """Scores on the held-out windows, by job name. with_none: also score the forecast without a denoiser."""
    search = stage.experiment.search
    gpus = min(1.0, search.gpus_per_trial)
    task = ray.remote(num_cpus=search.cpus_per_trial, num_gpus=gpus, max_retries=2)(_score)
    data = ExperimentData(stage.experiment, stage.workspace)
    pending = {job.name: task.remote(data, stage, job.parents, job.folder, _evaluation(stage, job)) for job in jobs}
    if with_none:
        parents = stage.parents(stage.experiment)
        pending[NO_DENOISER] = task.remote(data, stage, parents, None, stage.experiment.evaluation)
    with plain_errors():
        return dict(zip(pending, ray.get(list(pending.values())), strict=True))


def _evaluation(stage: Stage, job: ComponentJob) -> Evaluation:
    """The evaluation settings of the stage, with the steps and solvers of the configuration."""
    configured = job.experiment.evaluation
    return dataclasses.replace(stage.experiment.evaluation, steps=configured.steps, solvers=configured.solvers)


def _score(
    data: ExperimentData, stage: Stage, parents: ParentModels, folder: Path | None, evaluation: Evaluation
) -> ComponentScore:
    torch.set_num_threads(stage.experiment.search.cpus_per_trial)
    module = None if folder is None else checkpoint.load_component(folder)
    return ComponentScorer(stage.experiment, data, parents)(stage.component, module, evaluation)


def _record(stage: Stage, refit: Mapping[str, Sequence[ComponentJob]], scored: Mapping[str, ComponentScore]) -> None:
    """Write the refits' rows of trials.parquet, and their scores per window in the log folders of their models."""
    default = next(
        (scored[jobs[0].name].score for name, jobs in refit.items() if name == default_trial(stage.component)), None
    )
    rows = [r for r in records.read_rows(stage.workspace.trials) if not (r["refit"] and r["stage"] == stage.component)]
    for job in [job for group in refit.values() for job in group]:
        result, steps = scored[job.name], checkpoint.read_meta(job.folder).step
        records.save_score(job.folder, steps, result.score)
        row = records.rung_row(job.experiment, job.name, steps, flow=stage.flow, score=result.score, default=default)
        rows.append(
            row
            | {
                "status": "finished",
                "refit": True,
                "magnitude": result.magnitude,
                "nfe_per_frame": result.nfe_per_frame,
                "values": json.dumps({}),
            }
        )
    records.write_rows(stage.workspace.trials, rows)
