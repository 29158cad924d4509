"""Search the stages of an experiment: flow, denoiser, diffusion; the verb behind ``experiments/tune_*.py``.

A stage's search hands on its best trials; they are trained again at full length with several seeds under
TorchTrainer, scored, and ranked by the mean over seeds.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from raypipe import checkpoint, cli, config, records
from raypipe.config import COMPONENTS, LOSSES, Axis, Component, ConfigError, Experiment
from raypipe.finalists import NO_DENOISER, Finalist, published, read_finalists, write_finalists
from raypipe.launch import Settings, plain_errors, start_ray, train_jobs
from raypipe.records import Trial
from raypipe.search import Stage, run_search
from raypipe.sources import Sources
from raypipe.stage import Parents, Scored, Scorer
from raypipe.train import ComponentJob, prepare, run_settings
from raypipe.workspace import Workspace, check_dataset, fresh, latest


def _refit_settings(experiment: Experiment, workspace: Workspace, name: str, jobs: int) -> Settings:
    """Every worker that the cluster holds: a job each where there are enough jobs, else all at each job."""
    use_gpu = experiment.search.gpus_per_trial > 0
    total = ray.cluster_resources()
    cpus = experiment.train.cpus_per_worker
    held = max(1, math.floor(total.get("GPU", 0) if use_gpu else total.get("CPU", 1) / cpus))
    settings = run_settings(experiment, workspace, name, use_gpu=use_gpu)
    return dataclasses.replace(settings, num_workers=held, side_by_side=True) if jobs >= held else settings


def best_of(workspace: Workspace, component: Component) -> Finalist:
    return next(finalist for finalist in read_finalists(workspace, component) if finalist.handed_on)


def run_stage(experiment: Experiment, workspace: Workspace, component: Component) -> None:
    """Search one stage, train its winners again, and write what it hands on; does what is left of it."""
    if workspace.finalists(component).is_file():
        return
    stage, extra = make_stage(experiment, workspace, component)
    run_search(stage, extra)
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    ranked = records.last_rungs(rows, component)
    if not ranked:
        raise ConfigError(f"{workspace.trials}: every trial of the {component} stage failed; see its error column")
    chosen = records.hand_on(ranked, experiment.search.top_k)
    refit = _refits(stage, chosen)
    jobs = [job for group in refit.values() for job in group]
    train_jobs(jobs, _refit_settings(experiment, workspace, f"{component}-refit", len(jobs)))
    write_finalists(workspace, component, _rank(stage, chosen, refit))


def make_stage(experiment: Experiment, workspace: Workspace, component: Component) -> tuple[Stage, dict[str, Axis]]:
    """The stage on what the earlier ones handed on, and the axes that this adds."""
    if component == "flow":
        return Stage(experiment, workspace, component), {}
    flows = [f for f in read_finalists(workspace, "flow") if f.handed_on]
    if component == "denoiser":
        return Stage(experiment, workspace, component, flow=flows[0].model), {}
    best = best_of(workspace, "denoiser")
    denoiser = None if best.trial == NO_DENOISER else best.model
    return Stage(experiment, workspace, component, denoiser=denoiser), {
        "train.flow": Axis(choices=[f.model for f in flows])
    }


def _refits(stage: Stage, chosen: Sequence[Trial]) -> dict[str, list[ComponentJob]]:
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
    """Score every refit, side by side, and rank configurations by their mean over seeds."""
    component = stage.component
    jobs = [job for group in refit.values() for job in group]
    scored = _score_all(stage, jobs, with_none=component == "denoiser")
    ours = {trial.name for trial in chosen}
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


def stage_table(workspace: Workspace, component: Component) -> str:
    """What a stage handed on, as a table."""
    rows = []
    for f in read_finalists(workspace, component):
        spread = f"{min(f.objectives):.3f}-{max(f.objectives):.3f}" if len(f.objectives) > 1 else ""
        note = "published default" if f.published else ""
        rows.append([f.trial, f.noise_std, f.loss or "-", f.objective, spread, f.magnitude, f.model, note])
    return cli.table(rows, ["trial", "noise", "loss", "crps_ratio", "over seeds", "magnitude", "model", ""])


def make_parser(prog: str, text: str) -> cli.Parser:
    parser = cli.experiment_parser(prog, text)
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted search")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of sampler, weights, windows and noise")
    return parser


def open_workspace(args: Any, overrides: Mapping[str, Any], unfinished: Any) -> tuple[Experiment, Workspace]:
    """The experiment and folder of a command: a fresh one, or with --resume the last that is unfinished."""
    values = dict(overrides)
    if args.seed is not None:
        values = {"train.random_seed": args.seed, "search.seed": args.seed, **values}
    experiment = cli.experiment(args, values)
    storage = cli.storage_root(args)
    if args.resume:
        found = latest(storage, unfinished, like=experiment.name)
        if found is not None:
            return config.replace(found.experiment(), **values), found
        if args.name:
            raise ConfigError(f"--resume: nothing to resume in {storage / args.name}; leave --resume out to begin")
        if latest(storage, lambda workspace: True, like=experiment.name) is not None:
            raise ConfigError(
                f"--resume: no unfinished search {experiment.name!r} in {storage}; leave --resume out to begin"
            )
    elif args.name and (storage / args.name / "config.yaml").exists() and not _extends(storage, args.name, unfinished):
        raise ConfigError(
            f"--name: {args.name!r} exists in {storage}; add --resume to go on with it, or take another name"
        )
    name = args.name or fresh(storage, experiment.name)
    return config.replace(experiment, name=name), Workspace(storage, name)


def _extends(storage: Path, name: str, unfinished: Any) -> bool:
    """Whether an experiment has begun, but not this search."""
    workspace = Workspace(storage, name)
    return bool(unfinished(workspace)) and not workspace.study.exists()


def main(component: Component, argv: Sequence[str] | None = None) -> int:
    """`experiments/tune_<component>.py`."""
    parser = make_parser(f"tune_{component}.py", f"Search the {component} stage; make what it lacks first.")
    parser.add_argument("--trials", type=cli.positive, metavar="N", help=f"trials of the {component} stage")
    args, overrides = cli.parse(parser, argv)
    if args.trials is not None:
        field = f"search.{component}_trials"
        if field in overrides:
            raise ConfigError(f"--trials: says the same as --{field}; give one of them")
        overrides = {field: args.trials, **overrides}
    earlier = COMPONENTS[: COMPONENTS.index(component)]

    def unfinished(workspace: Workspace) -> bool:
        return not workspace.finalists(component).is_file()

    experiment, workspace = open_workspace(args, overrides, unfinished)
    if not args.resume and not args.name and not args.config and earlier:
        ready = latest(
            workspace.storage,
            lambda w: unfinished(w) and all(w.finalists(stage).is_file() for stage in earlier),
            like=cli.experiment(args, overrides).name,
        )
        if ready is not None:  # go on where the stages before this one are done
            experiment, workspace = config.replace(ready.experiment(), **overrides), ready
    check_dataset(workspace, experiment)
    start_ray(dashboard=experiment.search.workers_per_trial > 1)
    run_stages(experiment, workspace, [*earlier, component])
    following = [*COMPONENTS[COMPONENTS.index(component) + 1 :]]
    step = f"python experiments/tune_{following[0]}.py" if following else "python -m raypipe.evaluate"
    cli.say(f"\nnext   {step}")
    return 0


def run_stages(experiment: Experiment, workspace: Workspace, stages: Sequence[Component]) -> None:
    """Run stages one after the other, each with its table at the end."""
    experiment = config.replace(experiment, name=workspace.name)
    prepare(experiment, workspace)
    for stage in stages:
        run_stage(experiment, workspace, stage)
        cli.say(f"\n{stage} stage of {workspace.folder}")
        cli.say(stage_table(workspace, stage))
