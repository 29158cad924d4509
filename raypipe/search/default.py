"""The default: the configuration of the reference code, which every stage tries first and compares all others with."""

import re
from collections.abc import Mapping
from typing import Any

from raypipe.config import LOSSES, Component

DEFAULT_DIFFUSION = "published"
"""The refits of the default diffusion on the default flow. The search's own first diffusion stands on the best flow."""


def default_values(component: Component) -> Mapping[str, Any]:
    """Its settings, by dotted name; all others are the experiment's."""
    losses = LOSSES[component]
    return {
        "train.noise_std": 0.1,
        "train.loss": losses[0] if losses else None,
        "model.time_input": False,
    }


def default_trial(component: Component) -> str:
    """The name of a stage's first trial."""
    return f"{component}-00"


def is_default(trial: str) -> bool:
    """Whether a trial, or a refit of one (`flow-00-s1`), has the default's settings."""
    return re.fullmatch(rf"(\w+-00|{DEFAULT_DIFFUSION})(-s\d+)?", trial) is not None
