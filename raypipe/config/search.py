"""The hyperparameter search of a config: axes, and what a stage spends."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from raypipe.config.fields import Section, option, require
from raypipe.config.sections import COMPONENTS, Component, Objective


@dataclass(frozen=True)
class Axis(Section):
    """One searched axis: a list of choices, or a range."""

    choices: list[Any] | None = option(None, "the values to choose from")
    low: float | None = option(None, "lower end of a range")
    high: float | None = option(None, "upper end of a range")
    log: bool = option(False, "draw from the range on a log scale")
    zero: bool = option(False, "0 belongs to the range too, below its lower end")
    when: dict[str, Any] = option(
        {}, "searched only where these other axes have these values (or one of a list); elsewhere the config's value"
    )

    def __post_init__(self) -> None:
        given = [name for name in ("choices", "low", "high") if getattr(self, name) is not None]
        require(given in (["choices"], ["low", "high"]), "axis", "either `choices` or `low` and `high`", given)
        require(self.choices != [], "axis.choices", "one value or more", self.choices)
        if self.low is not None and self.high is not None:
            require(self.low < self.high, "axis.low", f"below high ({self.high})", self.low)
            require(not self.log or self.low > 0, "axis.low", "above 0 on a log scale", self.low)

    def extremes(self) -> list[Any]:
        """Values that the field must take, if it is to take all of them."""
        return [*(self.choices or [self.low, self.high]), *([0] if self.zero else [])]

    def conditions(self) -> dict[str, list[Any]]:
        """The values of other axes under which this one is searched; none: always."""
        return {name: value if isinstance(value, list) else [value] for name, value in self.when.items()}

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether a trial of these values has this axis."""
        return all(name in values and values[name] in allowed for name, allowed in self.conditions().items())


def _noise_axis() -> Axis:
    return Axis(low=0.01, high=0.4, log=True, zero=True)


Scheduler = Literal["asha", "halving", "median", "pbt", "none"]
"""`raypipe.search.schedulers` says what each is."""


PAUSING: tuple[Scheduler, ...] = ("halving", "pbt")
"""Those whose trials wait for each other, and give their places away meanwhile."""


@dataclass(frozen=True)
class Search(Section):
    """The hyperparameter search of one stage after the other."""

    flow_trials: int = option(8, "trials of the flow stage")
    denoiser_trials: int = option(3, "trials of the denoiser stage")
    diffusion_trials: int = option(6, "trials of the diffusion stage")
    flow_steps: int = option(600, "training steps of a flow trial that is not stopped")
    denoiser_steps: int = option(300, "training steps of a denoiser trial that is not stopped")
    diffusion_steps: int = option(400, "training steps of a diffusion trial that is not stopped")
    flow_refit_steps: int = option(1000, "training steps of a flow that is handed on")
    denoiser_refit_steps: int = option(400, "training steps of a denoiser that is handed on")
    diffusion_refit_steps: int = option(450, "training steps of a diffusion that is handed on")
    scheduler: Scheduler = option(
        "asha",
        "who is stopped early; `asha`, `halving`: all but the best 1/k of a rung, as they come or when all have come; "
        "`median`: who is worse than the median; `pbt`: nobody, the worst copy the best and change; `none`: nobody",
    )
    rungs: int = option(2, "rungs, at which trials are scored and compared; 1: no trial is stopped early")
    reduction_factor: int = option(3, "asha and halving keep the best 1/k of a rung")
    top_k: int = option(2, "trials that a stage hands on, besides the best of each loss")
    margin: float = option(
        0.15, "a finalist this much worse than the best, trained at full length, is not handed on, whatever its loss"
    )
    finalist_seeds: int = option(2, "seeds with which a stage's finalists are trained again")
    cpus_per_trial: int = option(1, "CPUs, and torch threads, of a trial")
    gpus_per_trial: float = option(0.0, "GPUs of a trial; a fraction shares one")
    workers_per_trial: int = option(1, "Train workers of a trial; from 2 on a trial is a TorchTrainer")
    max_concurrent: int | None = option(None, "trials at once; none: as many as the cluster's resources allow")
    seed: int = option(0, "seed of the sampler")
    sampler: Literal["tpe", "gp", "nsga2", "random"] = option("tpe", "Optuna's sampler, which proposes the trials")
    objectives: list[Objective] = option(
        ["crps_ratio"],
        "what trials are ranked on; with nfe_per_frame (network evaluations a frame) too, all that are best for "
        "their cost go on: then search evaluation.steps, with one rung",
    )
    flow: dict[str, Axis] = field(
        default_factory=lambda: {
            "train.noise_std": _noise_axis(),
            "train.loss": Axis(choices=["nll", "mse"]),
            "model.time_input": Axis(choices=[False, True]),
            "train.learning_rate": Axis(low=1e-3, high=5e-3, log=True),
        },
        metadata={"help": "the flow's axes, by dotted field name"},
    )
    denoiser: dict[str, Axis] = field(
        default_factory=lambda: {
            "train.noise_std": Axis(low=0.03, high=0.4, log=True),
            "train.learning_rate": Axis(low=1e-3, high=4e-3, log=True),
        },
        metadata={"help": "the denoiser's axes"},
    )
    diffusion: dict[str, Axis] = field(
        default_factory=lambda: {
            "train.noise_std": _noise_axis(),
            "train.loss": Axis(choices=["regression", "nll"]),
            "model.time_input": Axis(choices=[False, True]),
            "train.learning_rate": Axis(low=1e-3, high=4e-3, log=True),
        },
        metadata={"help": "the diffusion's axes"},
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int) and not isinstance(value, bool) and f.name != "seed":
                least = 2 if f.name == "reduction_factor" else 1
                require(value >= least, f"search.{f.name}", f"at least {least}", value)
        require(self.gpus_per_trial >= 0, "search.gpus_per_trial", "at least 0", self.gpus_per_trial)
        known = self.objectives in (["crps_ratio"], ["crps_ratio", "nfe_per_frame"])
        require(known, "search.objectives", "[crps_ratio] or [crps_ratio, nfe_per_frame]", self.objectives)
        plain = self.rungs == 1 or self.scheduler == "none"
        require(len(self.objectives) == 1 or plain, "search.scheduler", "none with two objectives", self.scheduler)
        for component in COMPONENTS:
            for name, axis in self.axes(component).items():
                self._check_conditions(f"search.{component}: {name}: when", axis, self.axes(component))
        # A trial of several workers holds no place of its own that it could give away.
        alone, rule = self.workers_per_trial == 1, f"1 with search.scheduler {self.scheduler}"
        require(alone or not self.pauses, "search.workers_per_trial", rule, self.workers_per_trial)

    @staticmethod
    def _check_conditions(where: str, axis: Axis, axes: Mapping[str, Axis]) -> None:
        for name, allowed in axis.conditions().items():
            parent = axes.get(name)
            listed = parent is not None and parent.choices is not None and not parent.when
            require(listed, where, "on axes of choices that are always searched", name)
            assert parent is not None and parent.choices is not None
            within = bool(allowed) and all(value in parent.choices for value in allowed)
            require(within, f"{where}: {name}", f"among {parent.choices}", allowed)

    @property
    def pauses(self) -> bool:
        return self.scheduler in PAUSING

    def trials(self, component: Component) -> int:
        return cast(int, getattr(self, f"{component}_trials"))

    def steps(self, component: Component) -> int:
        return cast(int, getattr(self, f"{component}_steps"))

    def refit_steps(self, component: Component) -> int:
        return cast(int, getattr(self, f"{component}_refit_steps"))

    def axes(self, component: Component) -> dict[str, Axis]:
        return cast("dict[str, Axis]", getattr(self, component))
