"""The default: the settings of the reference code. They are the first trial of every stage, and its baseline."""

import re
from collections.abc import Mapping
from typing import Any

from raypipe.config import LOSSES, Component

DEFAULT_DIFFUSION = "published"
"""Name of the refits of the default diffusion on the default flow; trial `diffusion-00` uses the best flow instead."""


def default_values(component: Component) -> Mapping[str, Any]:
    """The settings of the default by dotted name; the experiment determines all other settings.

    The reference code has no joint network. The first trial of that stage has the settings of experiments/README.md.
    """
    if component == "joint":
        return {
            "sde.noise": "input",
            "model.backbone": "conv",
            "model.time_input": True,
            "train.noise_std": 0.03,
            "train.loss": LOSSES[component][0],
        }
    losses = LOSSES[component]
    return {
        "train.noise_std": 0.1,
        "train.loss": losses[0] if losses else None,
        "model.backbone": "transformer",
        "model.time_input": False,
    }


def default_trial(component: Component) -> str:
    """Name of the first trial of a stage, which has the default's settings."""
    return f"{component}-00"


def is_default(trial: str) -> bool:
    """Whether a trial, or a refit of one (`flow-00-s1`), has the default's settings."""
    return re.fullmatch(rf"(\w+-00|{DEFAULT_DIFFUSION})(-s\d+)?", trial) is not None
