"""The models of earlier stages that a stage builds on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raypipe.common.files import write_json
from raypipe.config import Axis, Component
from raypipe.search.finalists import NO_DENOISER, Finalist, read_finalists
from raypipe.search.study import has_begun
from raypipe.workspace.layout import Workspace

PARENTS = "parents.json"
"""File in a stage's folder with the names of the models of earlier stages that the stage uses."""


def best_of(workspace: Workspace, component: Component) -> Finalist:
    """The best finalist of a finished stage. Raises ConfigError if the stage is not finished."""
    return next(finalist for finalist in read_finalists(workspace, component) if finalist.handed_on)


def fix_parents(workspace: Workspace, component: Component) -> Mapping[str, Any]:
    """The models that a stage after the flow uses: those with which it began, else the finalists of earlier stages.

    A stage that has begun keeps its models, even if an earlier stage has been extended since: scores with different
    flows are not comparable. Raises ConfigError if an earlier stage is not finished.
    """
    path = _path(workspace, component)
    if not path.is_file() or not has_begun(workspace.study, component):
        flows = [f.model for f in read_finalists(workspace, "flow") if f.handed_on]
        best = None if component == "denoiser" else best_of(workspace, "denoiser")
        denoiser = None if best is None or best.trial == NO_DENOISER else best.model
        write_json(path, {"flows": flows, "denoiser": denoiser})
    return dict(json.loads(path.read_text()))


def parent_axes(workspace: Workspace, component: Component) -> dict[str, Axis]:
    """The axes that earlier stages add to the space of a stage: for diffusions, the flow. Empty before it begins."""
    path = _path(workspace, component)
    if component != "diffusion" or not path.is_file():
        return {}
    return {"train.flow": Axis(choices=json.loads(path.read_text())["flows"])}


def _path(workspace: Workspace, component: Component) -> Path:
    return workspace.folder / component / PARENTS
