"""How large the networks of a stage are: the default, and the smallest and largest of its search space. Without Ray."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from raypipe import config
from raypipe.config import Axis, Component, ConfigError, Experiment
from raypipe.models.components import build_component
from raypipe.search.configured import trial_config
from raypipe.search.first_points import default_point
from raypipe.search.space import decode

COPIES = 5
"""Copies of the weights that a training holds at least: weights, average, gradients, and two of the optimizer."""
BYTES = 4
"""Bytes of a parameter."""


@dataclass(frozen=True)
class Network:
    """The config of a training, and what it says of the network. channels: C, of the latents."""

    experiment: Experiment
    channels: int

    @cached_property
    def parameters(self) -> int:
        """Number of parameters; counted without allocating them."""
        train, model = self.experiment.train, self.experiment.model
        with torch.device("meta"):
            module = build_component(train.component, model, self.channels, self.experiment.sde.noise)
        return sum(parameter.numel() for parameter in module.parameters())

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return BYTES * self.parameters

    @property
    def least_memory(self) -> int:
        """Bytes that a training needs in any case."""
        return COPIES * self.weights


@dataclass(frozen=True)
class StageNetworks:
    """The networks of a stage by the number of their parameters. default: that of the first trial."""

    default: Network
    smallest: Network
    largest: Network


def stage_networks(experiment: Experiment, component: Component, channels: int) -> StageNetworks:
    """The networks among which a stage searches. channels: C, of the latents."""
    axes = experiment.search.stages[component].axes
    point = {name: decode(axes[name], value) for name, value in default_point(experiment, component).items()}
    default = Network(trial_config(experiment, component, point), channels)
    made = [default, *(Network(found, channels) for found in _corners(experiment, component, axes, point))]
    by_size = sorted(made, key=lambda network: network.parameters)
    return StageNetworks(default, by_size[0], by_size[-1])


def _corners(
    experiment: Experiment, component: Component, axes: Mapping[str, Axis], point: Mapping[str, Any]
) -> Iterator[Experiment]:
    """Configs with every combination of the ends of the axes that may change the size of a network."""
    sized = {name: axis for name, axis in axes.items() if name.startswith("model.") or name == "sde.noise"}
    whole = {name for name, field in config.field_names() if field.type == "int"}
    ends = [[int(v) if name in whole else v for v in axis.extremes()] for name, axis in sized.items()]
    for values in itertools.product(*ends):
        given = dict(zip(sized, values, strict=True))
        try:
            yield trial_config(experiment, component, {**point, **given})
        except ConfigError:  # a combination that no trial can have, such as heads that do not divide the width
            continue
