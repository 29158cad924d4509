"""A stage's winners, trained again at full length with several seeds, and ranked."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from raypipe import checkpoint, config, records
from raypipe.config import LOSSES, Component, Experiment
from raypipe.finalists import NO_DENOISER, Finalist, published, read_finalists
from raypipe.launch import Settings, plain_errors, train_jobs
from raypipe.metrics.ensemble import Score
from raypipe.records import Trial
from raypipe.sources import Sources
from raypipe.stage import Parents, Scored, Scorer
from raypipe.study import ended_trials
from raypipe.train import ComponentJob, run_settings
from raypipe.trial import Stage
from raypipe.workspace import Workspace


def refit(stage: Stage, chosen: Sequence[Trial]) -> list[Finalist]:
    """Train what goes on, and the published default, at full length; those that are trained already stand.

    Returns them best first.
    """
    jobs = _jobs(stage, chosen)
    left = [job for group in jobs.values() for job in group]
    # An interrupted run goes on under its name; one that is over cannot, so a search of more trials has another.
    name = f"{stage.component}-refit-{ended_trials(stage.workspace.study, stage.component)}"
    train_jobs(left, _settings(stage.experiment, stage.workspace, name, len(left)))
    return _rank(stage, chosen, jobs)


def _settings(experiment: Experiment, workspace: Workspace, name: str, jobs: int) -> Settings:
    """Every worker that the cluster holds: a job each where there are enough jobs, else all at each job."""
    use_gpu = experiment.search.gpus_per_trial > 0
    total = ray.cluster_resources()
    cpus = experiment.train.cpus_per_worker
    held = max(1, math.floor(total.get("GPU", 0) if use_gpu else total.get("CPU", 1) / cpus))
    settings = run_settings(experiment, workspace, name, use_gpu=use_gpu)
    return dataclasses.replace(settings, num_workers=held, side_by_side=True) if jobs >= held else settings


def _jobs(stage: Stage, chosen: Sequence[Trial]) -> dict[str, list[ComponentJob]]:
    """The trainings of each configuration that goes on, and of the published default, one a seed."""
    search, component = stage.experiment.search, stage.component
    full = search.refit_steps(component)
    names = [trial.name for trial in chosen]
    if component != "diffusion" and _values(stage, f"{component}-00") is not None:
        names.append(f"{component}-00")
    seeds = range(search.finalist_seeds)
    length = {"train.steps": full, "train.warmup_steps": max(1, full // 20)}
    jobs = {
        name: [_refit(stage, name, {**(_values(stage, name) or {}), **length}, seed) for seed in seeds]
        for name in dict.fromkeys(names)
    }
    if component == "diffusion":
        # The published default's diffusion stands on the published default's flow.
        values = {
            "train.noise_std": 0.1,
            "train.loss": LOSSES["diffusion"][0],
            "model.time_input": False,
            "train.flow": published(read_finalists(stage.workspace, "flow")).model,
        }
        jobs["published"] = [_refit(stage, "published", {**values, **length}, seed) for seed in seeds]
    return jobs


def _refit(stage: Stage, name: str, values: Mapping[str, Any], seed: int) -> ComponentJob:
    base = stage.experiment.train.random_seed
    experiment = config.replace(stage.configure(values), **{
        "train.random_seed": base + seed, "train.num_workers": stage.experiment.train.num_workers
    })  # fmt: skip
    return ComponentJob(experiment, stage.workspace, f"{name}-s{seed}", stage.parents(experiment))


def _values(stage: Stage, trial: str) -> dict[str, Any] | None:
    """The config fields that a trial was proposed; None if it never reported."""
    for row in records.read_rows(stage.workspace.trials):
        if row["trial"] == trial and row["stage"] == stage.component:
            return dict(json.loads(row["values"]))
    return None


def _rank(stage: Stage, chosen: Sequence[Trial], refit: Mapping[str, Sequence[ComponentJob]]) -> list[Finalist]:
    """Score every refit, side by side, and rank configurations by their mean over seeds.

    Where the best do not differ by more than a standard error, all are scored again on more windows and members.
    That happens here, where one is chosen for the next stages to stand on, and not after the search, which only
    decides who is trained again: the top k, with the best of each loss.
    """
    component = stage.component
    jobs = [job for group in refit.values() for job in group]
    scored = _score_all(stage, jobs, with_none=component == "denoiser")
    ours = {trial.name for trial in chosen}
    rivals = [[scored[job.name].score for job in group] for name, group in refit.items() if name in ours]
    rivals += [[scored[NO_DENOISER].score]] if component == "denoiser" else []
    if too_close(rivals):
        scored = _score_all(_closer(stage), jobs, with_none=component == "denoiser")
    finalists = []
    for name, group in refit.items():
        scores = [scored[job.name] for job in group]
        objectives = tuple(s.score.ratio.value for s in scores)
        best = min(range(len(group)), key=lambda i: objectives[i])
        train = group[best].experiment.train
        finalists.append(
            Finalist(
                trial=name,
                model=group[best].name,
                objective=sum(objectives) / len(objectives),
                objectives=objectives,
                magnitude=scores[best].magnitude,
                residual_std=scores[best].residual_std,
                noise_std=train.noise_std,
                loss=train.loss,
                flow=train.flow,
                published=name == "published" or (component != "diffusion" and name == f"{component}-00"),
                handed_on=name in ours,
            )
        )
    if component == "denoiser":
        none = scored[NO_DENOISER]
        value = none.score.ratio.value
        finalists.append(
            Finalist(NO_DENOISER, NO_DENOISER, value, (value,), none.magnitude, none.residual_std, 0.0, None)
        )
    _record(stage, refit, scored)
    bound = min(f.objective for f in finalists) + stage.experiment.search.margin
    finalists = [dataclasses.replace(f, handed_on=f.handed_on and f.objective <= bound) for f in finalists]
    finite = [f for f in finalists if math.isfinite(f.objective) or f.published]
    return sorted(finite, key=lambda finalist: finalist.objective)


def too_close(rivals: Sequence[Sequence[Score]]) -> bool:
    """Whether the second best configuration, each with the scores of its seeds, is within a standard error of the best.

    The error is that of their difference, paired by window, of the means over seeds.
    """
    means = [dataclasses.replace(seeds[0], crps=np.mean([score.crps for score in seeds], 0)) for seeds in rivals]
    finite = sorted((m for m in means if math.isfinite(m.ratio.value)), key=lambda mean: mean.ratio.value)
    if len(finite) < 2:
        return False
    gap = finite[1].minus(finite[0])
    return not gap.value > gap.se


def _closer(stage: Stage) -> Stage:
    """The stage with scores of half the standard error, or of all windows that there are."""
    evaluation = stage.experiment.evaluation
    more = {"evaluation.windows": 4 * evaluation.windows, "evaluation.members": 2 * evaluation.members}
    return dataclasses.replace(stage, experiment=config.replace(stage.experiment, **more))


def _score_all(stage: Stage, jobs: Sequence[ComponentJob], *, with_none: bool) -> dict[str, Scored]:
    """Scores on the held-out windows, by name; denoisers are scored against `none` as well."""
    search = stage.experiment.search
    gpus = min(1.0, search.gpus_per_trial)
    task = ray.remote(num_cpus=search.cpus_per_trial, num_gpus=gpus, max_retries=2)(_score)
    sources = Sources(stage.experiment, stage.workspace)
    pending = {
        job.name: task.remote(sources, stage.component, job.parents, job.folder, search.cpus_per_trial, stage)
        for job in jobs
    }
    if with_none:
        parents = stage.parents(stage.experiment)
        pending[NO_DENOISER] = task.remote(sources, stage.component, parents, None, search.cpus_per_trial, stage)
    with plain_errors():
        return dict(zip(pending, ray.get(list(pending.values())), strict=True))


def _score(
    sources: Sources, component: Component, parents: Parents, folder: Path | None, threads: int, stage: Stage
) -> Scored:
    torch.set_num_threads(threads)
    module = None if folder is None else checkpoint.load_component(folder)
    scored = Scorer(stage.experiment, sources, parents)(component, module)
    if folder is not None:
        records.save_score(folder, checkpoint.read_meta(folder).step, scored.score)
    return scored


def _record(stage: Stage, refit: Mapping[str, Sequence[ComponentJob]], scored: Mapping[str, Scored]) -> None:
    """Rows of trials.parquet for the refits."""
    default = next((scored[jobs[0].name] for name, jobs in refit.items() if name.endswith("-00")), None)
    rows = [r for r in records.read_rows(stage.workspace.trials) if not (r["refit"] and r["stage"] == stage.component)]
    for job in [job for group in refit.values() for job in group]:
        result, train = scored[job.name], job.experiment.train
        ratio = result.score.ratio
        gap = None if default is None else result.score.minus(default.score)
        rows.append(
            {
                "stage": stage.component,
                "trial": job.name,
                "step": train.steps,
                "status": "finished",
                "refit": True,
                "objective": ratio.value,
                "objective_se": ratio.se,
                "difference": None if gap is None else gap.value,
                "difference_se": None if gap is None else gap.se,
                "noise_std": train.noise_std,
                "loss": train.loss,
                "learning_rate": train.learning_rate,
                "time_input": job.experiment.model.time_input and stage.component != "denoiser",
                "flow": train.flow or stage.flow,
                "magnitude": result.magnitude,
                "spread_skill": result.score.spread_skill,
                "objective_by_step": result.score.ratio_by_step.tolist(),
                "values": json.dumps({}),
            }
        )
    records.write_rows(stage.workspace.trials, rows)
