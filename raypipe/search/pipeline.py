"""The stages of a search, one after the other."""

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


def best_of(workspace: Workspace, component: Component) -> Finalist:
    return next(finalist for finalist in read_finalists(workspace, component) if finalist.handed_on)


def is_searched(workspace: Workspace, component: Component, trials: int) -> bool:
    """Whether a stage is finished, with as many trials as are asked for."""
    ended = ended_trials(workspace.study, component)
    return workspace.finalists(component).is_file() and (ended == 0 or ended >= trials)


def run_stage(stage: Stage, extra: Mapping[str, Axis]) -> None:
    """Search one stage, train its winners again, and write what it hands on; does what is left of it."""
    experiment, workspace, component = stage.experiment, stage.workspace, stage.component
    economy = run_search(stage, extra)
    if economy is not None:
        rate, outside = economy.trials_a_minute, 100 * max(0.0, economy.outside)
        terminal.say(f"{component} search: {rate:.1f} trials a minute, {outside:.0f}% of the time outside trials")
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    ranked = finalists.last_rungs(rows, component)
    if not ranked:
        raise ConfigError(f"{workspace.trials}: every trial of the {component} stage failed; see its error column")
    chosen = finalists.select_finalists(ranked, experiment.search.top_k)
    if len(experiment.search.objectives) > 1:
        chosen += [trial for trial in finalists.pareto_front(ranked) if trial not in chosen]
    write_finalists(workspace, component, refit(stage, chosen))


def make_stage(experiment: Experiment, workspace: Workspace, component: Component) -> tuple[Stage, dict[str, Axis]]:
    """The stage on what the earlier ones handed on, and the axes that this adds.

    A stage that has begun stays on what it began with, even if an earlier one has gone on since: scores on
    other flows are not to be compared.
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
    """What a stage handed on, as a table."""
    rows = []
    for f in read_finalists(workspace, component):
        spread = f"{min(f.objectives):.3f}-{max(f.objectives):.3f}" if len(f.objectives) > 1 else ""
        note = "published default" if f.published and f.trial != DEFAULT_DIFFUSION else ""
        rows.append([f.trial, f.noise_std, f.loss or "-", f.objective, spread, f.closer, f.magnitude, f.model, note])
    header = ["trial", "noise", "loss", "crps_ratio", "over seeds", "closer look", "magnitude", "model", ""]
    return terminal.table(rows, header)


def run_stages(
    experiment: Experiment,
    workspace: Workspace,
    stages: Sequence[Component],
    *,
    warm_start: Path | None = None,
    wandb: bool = False,
) -> None:
    """Run stages one after the other, each with its table at the end; those that are finished only show it."""
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
    """Keep the numbers of trials asked for, so that an interrupted extension goes on as one."""
    asked = {f"search.{c}_trials": experiment.search.trials(c) for c in COMPONENTS}
    began = workspace.experiment()
    if config.replace(began, **asked) != began:
        text = yaml.safe_dump(config.to_dict(config.replace(began, **asked)), sort_keys=False)
        write_atomic(workspace.folder / "config.yaml", text)
