"""Run the stages of a search in order: search, retrain the finalists, hand the best on to the next stage."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy.typing as npt

from raypipe import config
from raypipe.common import terminal
from raypipe.config import Axis, Component, ConfigError, Experiment
from raypipe.distributed.prepare import prepare
from raypipe.forecast.ceiling import Ceiling, ceiling_rows, ceiling_warning, measure_ceiling
from raypipe.search import finalists, records
from raypipe.search.budget import Budget, Work
from raypipe.search.changes import adopt, check_changes, field_text
from raypipe.search.default import DEFAULT_DIFFUSION
from raypipe.search.early import left_out
from raypipe.search.finalists import read_finalists, write_finalists
from raypipe.search.keep import tidy
from raypipe.search.parents import fix_parents, parent_axes
from raypipe.search.progress import is_searched
from raypipe.search.refits import refit
from raypipe.search.rivals import train_rivals
from raypipe.search.stage import Stage
from raypipe.search.study import ended_trials, set_closed
from raypipe.search.tuner import SearchCost, check_trial_resources, concurrent_trials, run_search
from raypipe.search.workload import evaluation_work, stage_work
from raypipe.training.few_data import few_data
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

logger = logging.getLogger(__name__)


def run_stage(stage: Stage, extra: Mapping[str, Axis], budget: Budget) -> None:
    """Search one stage, retrain its finalists and write them; an interrupted stage is continued.

    extra: axes in addition to those of the config. budget: the time of the command, in which the stage is planned.
    Raises ConfigError if every trial, or every new trial, failed.
    """
    experiment, workspace, component = stage.experiment, stage.workspace, stage.component
    set_closed(workspace.study, component, False)
    cost = run_search(stage, extra, budget=budget)
    if cost is not None:
        rate, outside = cost.trials_a_minute, 100 * max(0.0, cost.outside)
        terminal.say(f"{component} search: {rate:.1f} trials per minute, {outside:.0f}% of slot time idle")
        _check_failures(stage, cost)
    if (line := left_out(workspace, component, experiment.search)) is not None:
        terminal.say(line)
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    ranked = finalists.last_rungs(rows, component)
    if not ranked:
        raise ConfigError(
            f"{workspace.trials}: every trial of the {component} stage failed, see its error column; remove the cause, "
            f"then run more trials with --resume --search.{component}.trials N"
        )
    top_k = experiment.search.top_k
    chosen = ranked[:top_k] if component == "joint" else finalists.select_finalists(ranked, top_k)
    if len(experiment.search.objectives) > 1:
        chosen += [trial for trial in finalists.pareto_front(ranked) if trial not in chosen]
    found = refit(stage, chosen)
    write_finalists(workspace, component, found)
    tidy(stage, ranked, found)
    set_closed(workspace.study, component, True)
    budget.end_stage(component)


def _check_failures(stage: Stage, cost: SearchCost) -> None:
    """Raise ConfigError if every trial of this process failed, after a line per distinct cause."""
    if not cost.failures or len(cost.failures) < cost.trials:
        return
    causes: dict[str, list[str]] = {}
    for name, cause in sorted(cost.failures.items()):
        causes.setdefault(cause, []).append(name)
    for cause, names in causes.items():
        logger.warning("%s: %s", ", ".join(names), cause)
    raise ConfigError(
        f"{stage.workspace.trials}: all {cost.trials} new trials of the {stage.component} stage failed, for the "
        f"reasons above; --resume goes on with earlier trials, --resume --search.{stage.component}.trials N runs more"
    )


def make_stage(experiment: Experiment, workspace: Workspace, component: Component) -> tuple[Stage, dict[str, Axis]]:
    """The stage, built on the finalists of earlier stages, and the axes that these add to its space.

    Raises ConfigError if an earlier stage is not finished.
    """
    if component in ("flow", "joint"):
        return Stage(experiment, workspace, component), {}
    parents = fix_parents(workspace, component)
    if component == "denoiser":
        return Stage(experiment, workspace, component, flow=parents["flows"][0]), {}
    return Stage(experiment, workspace, component, denoiser=parents["denoiser"]), parent_axes(workspace, component)


def stage_table(workspace: Workspace, component: Component) -> str:
    """Table of the finalists of a stage."""
    rows = []
    for f in read_finalists(workspace, component):
        spread = f"{min(f.objectives):.3f}-{max(f.objectives):.3f}" if len(f.objectives) > 1 else ""
        note = "default" if f.published and f.trial != DEFAULT_DIFFUSION else ""
        rows.append([f.trial, f.noise_std, f.loss or "-", f.objective, spread, f.closer, f.magnitude, f.model, note])
    header = ["trial", "noise", "loss", "crps_ratio", "range over seeds", "rescored", "magnitude", "model", ""]
    return terminal.table(rows, header)


def say_ceiling(ceiling: Ceiling) -> None:
    """Print what the autoencoder allows, and a warning if that is less than repeating the last frame gives."""
    header = [f"autoencoder, {ceiling.windows} validation windows", "in pixels", "psnr", "ssim"]
    terminal.say(terminal.table(ceiling_rows(ceiling), header))
    warning = ceiling_warning(ceiling)
    if warning:
        logger.warning(warning)


def few_windows(lengths: npt.ArrayLike, experiment: Experiment) -> str | None:
    """A line that says that the training windows are too few for the longest training of a search, else None.

    lengths: [clips], frames of each training clip.
    """
    search = experiment.search
    stage = max(search.searched, key=lambda component: search.stages[component].refit_steps)
    steps = search.stages[stage].refit_steps
    few = few_data(lengths, experiment, steps)
    if few is None:
        return None
    flip = "--dataset.horizontal_flip true (and another --name) if mirrored videos look as real, "
    return (
        f"few training data: {few.windows} windows of {experiment.model.num_input_frames + 1} frames, each seen "
        f"{few.passes:.0f} times in search.{stage}.refit_steps {steps}, so the network may learn them by heart; what "
        f"helps, cheapest first: --search.{stage}.refit_steps {few.steps}, "
        f"{'' if experiment.dataset.horizontal_flip else flip}more or longer videos"
    )


def run_stages(
    experiment: Experiment,
    workspace: Workspace,
    stages: Sequence[Component],
    *,
    budget: Budget,
    evaluates: bool = False,
    check: Callable[[ExperimentData], object] | None = None,
    warm_start: Path | None = None,
    wandb: bool = False,
) -> None:
    """Run stages in order and print the table of finalists of each; finished stages are not run again.

    budget: the time of the command. evaluates: whether the command goes on with the evaluation, which needs some of it;
    then the rivals are trained in the end.
    check: called with the prepared data before anything changes; may raise ConfigError.
    """
    experiment = config.replace(experiment, name=workspace.name)
    check_changes(workspace, experiment)
    check_trial_resources(experiment)
    data = prepare(experiment, workspace, wandb=wandb)
    if check is not None:
        check(data)
    say_ceiling(measure_ceiling(data))
    few = few_windows(data.training_shards().lengths, experiment)
    if few:
        logger.warning(few)
    for name, (before, after) in adopt(workspace, experiment).items():
        terminal.say(f"changed {name}: {field_text(before)} -> {field_text(after)}")
    left = [component for component in stages if not is_searched(workspace, component, experiment.search)]
    _plan(experiment, workspace, left, budget, evaluates)
    for component in stages:
        if component in left:
            stage, extra = make_stage(experiment, workspace, component)
            run_stage(replace(stage, warm_start=warm_start, wandb=wandb), extra, budget)
        terminal.say(f"\n{component} stage of {workspace.folder}")
        terminal.say(stage_table(workspace, component))
    if evaluates:
        train_rivals(experiment, workspace, wandb=wandb)


def _plan(
    experiment: Experiment, workspace: Workspace, left: Sequence[Component], budget: Budget, evaluates: bool
) -> None:
    places = concurrent_trials(experiment) or experiment.search.max_concurrent or 1
    stages = {}
    for component in left:
        trials = experiment.search.stages[component].trials - ended_trials(workspace.study, component)
        stages[component] = stage_work(experiment, component, max(0, trials), places)
    budget.plan(stages, evaluation_work(experiment, places) if evaluates else Work())
