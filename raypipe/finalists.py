"""What a stage of the search hands on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import TypeAdapter

from raypipe.common.files import write_atomic
from raypipe.config import Component, ConfigError
from raypipe.workspace.layout import Workspace

NO_DENOISER = "none"
"""The candidate that every denoiser has to beat."""


@dataclass(frozen=True)
class Finalist:
    """A configuration that a stage hands on, with the model of its best seed.

    objective: the mean over seeds; objectives: each seed's; magnitude: the constant diffusion's multiplier,
    or beta; residual_std: the flow's, [C]; flow: the model that a diffusion was trained on; published: the
    published default, kept for comparison whatever it scores; handed_on: whether the next stage builds on it;
    closer: the objective on more windows and members, for those too close to the best to be told apart before.
    """

    trial: str
    model: str
    objective: float
    objectives: tuple[float, ...]
    magnitude: float
    residual_std: tuple[float, ...]
    noise_std: float
    loss: str | None
    flow: str | None = None
    published: bool = False
    handed_on: bool = True
    closer: float | None = None


def write_finalists(workspace: Workspace, component: Component, finalists: Sequence[Finalist]) -> None:
    """Best first."""
    text = TypeAdapter(list[Finalist]).dump_json(list(finalists), indent=2)
    write_atomic(workspace.finalists(component), text + b"\n")


def read_finalists(workspace: Workspace, component: Component) -> list[Finalist]:
    """What a finished stage handed on, best first, and the published default. ConfigError if it is not finished."""
    path = workspace.finalists(component)
    if not path.is_file():
        raise ConfigError(
            f"{workspace.folder}: its {component} stage is not finished; "
            f"go on with python experiments/tune_{component}.py --name {workspace.name} --resume"
        )
    try:
        return TypeAdapter(list[Finalist]).validate_python(json.loads(path.read_text()))
    except ValueError as error:
        raise ConfigError(f"{path}: not what a stage wrote ({str(error).splitlines()[0]}); delete it") from None


def published(finalists: Sequence[Finalist]) -> Finalist:
    """The published default among them."""
    return next(finalist for finalist in finalists if finalist.published)
