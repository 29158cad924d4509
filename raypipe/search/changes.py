"""What may change when a search is resumed, and how the change is carried out.

config.yaml always holds the settings with which the search goes on, so that a plain --resume needs no other flags.
"""

import json
from collections.abc import Mapping
from functools import partial

import yaml

from raypipe import config
from raypipe.common.files import write_atomic
from raypipe.config import COMPONENTS, Axis, Component, ConfigError, Experiment, Search
from raypipe.search.first_points import default_point
from raypipe.search.parents import parent_axes
from raypipe.search.study import has_begun
from raypipe.search.takeover import Space, take_over
from raypipe.workspace.layout import Workspace

FREE = {
    *("name", "rivals", "dataset.root", "dataset.cache", "dataset.cache_gb", "dataset.stall_seconds"),
    *("train.component", "train.loss", "train.steps", "train.warmup_steps"),
    *("train.num_workers", "train.cpus_per_worker", "train.max_failures", "train.checkpoint_every"),
    *("train.compile", "train.accumulate"),
    *("search.scheduler", "search.rungs", "search.reduction_factor", "search.sampler", "search.seed"),
    *("search.top_k", "search.margin", "search.finalist_seeds", "search.max_concurrent"),
    *("search.minutes", "search.patience", "search.keep"),
    *("search.cpus_per_trial", "search.gpus_per_trial", "search.workers_per_trial"),
    *(f"search.{stage}.{name}" for stage in Search().stages for name in ("trials", "axes")),
    *("evaluation.test_windows", "evaluation.test_members", "evaluation.climatology_members", "evaluation.alphas"),
    *("evaluation.models", "evaluation.decoding", "evaluation.choose_by", "evaluation.finalists"),
    *("evaluation.batch_size", "evaluation.compile"),
    *("evaluation.i3d_weights", "evaluation.lpips_weights", "evaluation.vjepa_weights"),
}
"""Fields that may change at any time: trials before and after the change are comparable, or do not use the field.

The folder may have been renamed. dataset.root may name a copy of the dataset: the content is compared. The rest of the
config defines what a score means.
"""
DATA = ("dataset", "demo", "autoencoder")
"""Sections that cannot change once the experiment has begun, with a dataset and an autoencoder."""


def check_changes(workspace: Workspace, experiment: Experiment) -> None:
    """Raise ConfigError if an experiment that has begun cannot go on with these settings. Writes nothing."""
    if not (workspace.folder / "config.yaml").is_file():
        return
    changed = config.differences(workspace.experiment(), experiment)
    begun = [component for component in COMPONENTS if has_begun(workspace.study, component)]
    fixed = [name for name in changed if name not in FREE and _is_fixed(workspace, name, begun)]
    if fixed:
        texts = {name: [field_text(value) for value in changed[name]] for name in fixed}
        values = ", ".join(f"{name} is {before}, not {after}" for name, (before, after) in texts.items())
        raise ConfigError(
            f"--resume: in {workspace.folder}, {values}; this cannot change, as the earlier results would not be "
            "comparable: omit the change, or start a new search with another --name"
        )


def _is_fixed(workspace: Workspace, name: str, begun: list[Component]) -> bool:
    section, _, field = name.partition(".")
    if section in DATA:
        return True
    for component in COMPONENTS:
        if field == f"{component}.steps":
            return component in begun
        if field == f"{component}.refit_steps":
            return workspace.finalists(component).is_file() or _refits(workspace, component)
    return bool(begun)


def _refits(workspace: Workspace, component: Component) -> bool:
    """Whether a finalist of a stage has started to train."""
    return any(workspace.run(component, "").glob("*-s[0-9]*")) or any(
        (workspace.ray / "train").glob(f"{component}-refit-*")
    )


def field_text(value: object) -> str:
    """The value of a field in one line, as JSON; of axes, only what differs from an axis's defaults."""
    if isinstance(value, dict):
        plain = {name: config.to_dict(axis) for name, axis in value.items()}
        value = {n: {k: v for k, v in axis.items() if v not in (None, False, {})} for n, axis in plain.items()}
    return json.dumps(value)


def adopt(workspace: Workspace, experiment: Experiment) -> dict[str, tuple[object, object]]:
    """Go on with changed settings: take trials over into changed spaces, then write config.yaml.

    The caller must have locked the experiment. Returns the fields that have changed, with the values before and after.
    Raises ConfigError as `check_changes` does, before anything is written.
    """
    check_changes(workspace, experiment)
    before = workspace.experiment()
    changed = config.differences(before, experiment)
    if changed:
        for component in COMPONENTS:
            adapt_study(workspace, component, before, experiment)
        text = yaml.safe_dump(config.to_dict(experiment), sort_keys=False)
        write_atomic(workspace.folder / "config.yaml", text)
    return changed


def adapt_study(
    workspace: Workspace,
    component: Component,
    before: Experiment,
    experiment: Experiment,
    extra: Mapping[str, Axis] | None = None,
) -> None:
    """Take the trials of a stage over into its space in `experiment`. before: the experiment that proposed them.

    extra: axes in addition to those of the config; None for those that earlier stages add.
    """
    extra = parent_axes(workspace, component) if extra is None else extra
    axes = {**experiment.search.stages[component].axes, **extra}
    default = default_point(experiment, component) | {name: (axis.choices or [None])[0] for name, axis in extra.items()}
    space = Space(axes, default, partial(config.field_value, experiment))
    earlier = {**before.search.stages[component].axes, **extra}
    take_over(workspace.study, component, earlier, space, len(experiment.search.objectives))
