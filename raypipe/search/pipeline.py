"""Run the stages of a search in order: search, retrain the finalists, hand the best on to the next stage."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from raypipe import config
from raypipe.common import terminal
from raypipe.common.files import write_atomic, write_json
from raypipe.config import COMPONENTS, Axis, Component, ConfigError, Experiment
from raypipe.distributed.prepare import prepare
from raypipe.search import finalists, records
from raypipe.search.default import DEFAULT_DIFFUSION
from raypipe.search.finalists import NO_DENOISER, Finalist, read_finalists, write_finalists
from raypipe.search.refits import refit
from raypipe.search.stage import Stage
from raypipe.search.study import ended_trials
from raypipe.search.tuner import run_search
from raypipe.workspace.layout import Workspace

PARENTS = "parents.json"
"""File in a stage's folder with the names of the models of earlier stages that the stage uses."""


def best_of(workspace: Workspace, component: Component) -> Finalist:
    """The best finalist of a finished stage. Raises ConfigError if the stage is not finished."""
    return next(finalist for finalist in read_finalists(workspace, component) if finalist.handed_on)


def is_searched(workspace: Workspace, component: Component, trials: int) -> bool:
    """Whether a stage has finalists, and its study, if there is one, has at least `trials` ended trials."""
    ended = ended_trials(workspace.study, component)
    return workspace.finalists(component).is_file() and (ended == 0 or ended >= trials)


def run_stage(stage: Stage, extra: Mapping[str, Axis]) -> None:
    """Search one stage, retrain its finalists and write them; an interrupted stage is continued.

    extra: axes in addition to those of the config. Raises ConfigError if every trial failed.
    """
    experiment, workspace, component = stage.experiment, stage.workspace, stage.component
    cost = run_search(stage, extra)
    if cost is not None:
        rate, outside = cost.trials_a_minute, 100 * max(0.0, cost.outside)
        terminal.say(f"{component} search: {rate:.1f} trials per minute, {outside:.0f}% of slot time idle")
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    ranked = finalists.last_rungs(rows, component)
    if not ranked:
        raise ConfigError(f"{workspace.trials}: every trial of the {component} stage failed; see its error column")
    chosen = finalists.select_finalists(ranked, experiment.search.top_k)
    if len(experiment.search.objectives) > 1:
        chosen += [trial for trial in finalists.pareto_front(ranked) if trial not in chosen]
    write_finalists(workspace, component, refit(stage, chosen))


def make_stage(experiment: Experiment, workspace: Workspace, component: Component) -> tuple[Stage, dict[str, Axis]]:
    """The stage, built on the finalists of earlier stages, and the axes that these add to its space.

    A stage that has started keeps the models that it started with, even if an earlier stage has been extended since:
    scores with different flows are not comparable. Raises ConfigError if an earlier stage is not finished.
    """
    if component == "flow":
        return Stage(experiment, workspace, component), {}
    path = workspace.folder / component / PARENTS
    if not path.is_file() or ended_trials(workspace.study, component) == 0:
        flows = [f.model for f in read_finalists(workspace, "flow") if f.handed_on]
        best = None if component == "denoiser" else best_of(workspace, "denoiser")
        denoiser = None if best is None or best.trial == NO_DENOISER else best.model
        write_json(path, {"flows": flows, "denoiser": denoiser})
    parents = json.loads(path.read_text())
    if component == "denoiser":
        return Stage(experiment, workspace, component, flow=parents["flows"][0]), {}
    return Stage(experiment, workspace, component, denoiser=parents["denoiser"]), {
        "train.flow": Axis(choices=parents["flows"])
    }


def stage_table(workspace: Workspace, component: Component) -> str:
    """Table of the finalists of a stage."""
    rows = []
    for f in read_finalists(workspace, component):
        spread = f"{min(f.objectives):.3f}-{max(f.objectives):.3f}" if len(f.objectives) > 1 else ""
        note = "default" if f.published and f.trial != DEFAULT_DIFFUSION else ""
        rows.append([f.trial, f.noise_std, f.loss or "-", f.objective, spread, f.closer, f.magnitude, f.model, note])
    header = ["trial", "noise", "loss", "crps_ratio", "range over seeds", "rescored", "magnitude", "model", ""]
    return terminal.table(rows, header)


def run_stages(
    experiment: Experiment,
    workspace: Workspace,
    stages: Sequence[Component],
    *,
    warm_start: Path | None = None,
    wandb: bool = False,
) -> None:
    """Run stages in order and print the table of finalists of each; finished stages are not run again."""
    experiment = config.replace(experiment, name=workspace.name)
    prepare(experiment, workspace, wandb=wandb)
    _note_trials(experiment, workspace)
    for component in stages:
        if not is_searched(workspace, component, experiment.search.trials(component)):
            stage, extra = make_stage(experiment, workspace, component)
            run_stage(replace(stage, warm_start=warm_start, wandb=wandb), extra)
        terminal.say(f"\n{component} stage of {workspace.folder}")
        terminal.say(stage_table(workspace, component))


def _note_trials(experiment: Experiment, workspace: Workspace) -> None:
    """Store the numbers of trials in config.yaml, so that --resume completes an interrupted extension."""
    asked = {f"search.{c}_trials": experiment.search.trials(c) for c in COMPONENTS}
    began = workspace.experiment()
    if config.replace(began, **asked) != began:
        text = yaml.safe_dump(config.to_dict(config.replace(began, **asked)), sort_keys=False)
        write_atomic(workspace.folder / "config.yaml", text)
