"""The `search` section of a config: its stages, each with axes, trials and training steps, and what they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import model_validator

from raypipe.config.fields import Section, option, require, require_least
from raypipe.config.sections import COMPONENTS, Component, Objective


@dataclass(frozen=True)
class Axis(Section):
    """One axis of the search space: a list of choices, or a range from low to high."""

    choices: list[Any] | None = option(None, "list of values to choose from")
    low: float | None = option(None, "lower end of the range")
    high: float | None = option(None, "upper end of the range")
    log: bool = option(False, "sample the range on a log scale")
    zero: bool = option(False, "whether 0 can be proposed too, as if it lay just below `low`")
    when: dict[str, Any] = option(
        {},
        "condition, as {axis: value or list of values}: where those axes have other values, this one is not searched "
        "and the trial takes the value of the config",
    )

    def __post_init__(self) -> None:
        given = [name for name in ("choices", "low", "high") if getattr(self, name) is not None]
        require(given in (["choices"], ["low", "high"]), "axis", "either `choices` or `low` and `high`", given)
        require(self.choices != [], "axis.choices", "at least one value", self.choices)
        if self.low is not None and self.high is not None:
            require(self.low < self.high, "axis.low", f"below high ({self.high})", self.low)
            require(not self.log or self.low > 0, "axis.low", "above 0 on a log scale", self.low)

    def extremes(self) -> list[Any]:
        """Values to validate: the field accepts every value of the axis if it accepts these."""
        return [*(self.choices or [self.low, self.high]), *([0] if self.zero else [])]

    def conditions(self) -> dict[str, list[Any]]:
        """`when` with every value as a list: the allowed values of each other axis. Empty: no condition."""
        return {name: value if isinstance(value, list) else [value] for name, value in self.when.items()}

    def applies(self, values: Mapping[str, Any]) -> bool:
        """Whether `values`, by axis name, meet the condition, so that this axis is searched."""
        return all(name in values and values[name] in allowed for name, allowed in self.conditions().items())


def _noise_axis() -> Axis:
    return Axis(low=0.01, high=0.4, log=True, zero=True)


Scheduler = Literal["asha", "halving", "median", "pbt", "none"]
"""The schedulers that `raypipe.search.schedulers` defines."""


PAUSING: tuple[Scheduler, ...] = ("halving", "pbt")
"""Schedulers that pause a trial until the others reach its rung; another trial uses its resources meanwhile."""


@dataclass(frozen=True)
class SearchStage(Section):
    """One stage of the search. Its defaults differ between stages, so `Search` states them."""

    trials: int = field(metadata={"help": "number of trials in the stage"})
    steps: int = field(metadata={"help": "training steps of a trial that is not stopped early"})
    refit_steps: int = field(metadata={"help": "training steps when a finalist of the stage is retrained"})
    axes: dict[str, Axis] = field(
        metadata={
            "help": "axes of the stage, as {field: axis}, such as {train.loss: {choices: [nll, mse]}} or "
            "{train.noise_std: {low: 0.01, high: 0.4, log: true}}; replaces all default axes of the stage"
        }
    )


def _stage(trials: int, steps: int, refit_steps: int, axes: Mapping[str, Axis]) -> Any:
    """A field of `Search` that holds a stage with these defaults. Each instance gets its own copy of `axes`."""
    return field(default_factory=lambda: SearchStage(trials, steps, refit_steps, dict(axes)))


@dataclass(frozen=True)
class Search(Section):
    """The hyperparameter search: one stage each for flow, denoiser, diffusion and joint, in this order.

    search.joint.trials = 0 omits the joint stage.
    """

    flow: SearchStage = _stage(
        trials=3,
        steps=150,
        refit_steps=250,
        axes={
            "train.noise_std": _noise_axis(),
            "train.loss": Axis(choices=["nll", "mse"]),
            "model.time_input": Axis(choices=[False, True]),
            "train.learning_rate": Axis(low=1e-3, high=5e-3, log=True),
        },
    )
    denoiser: SearchStage = _stage(
        trials=1,
        steps=100,
        refit_steps=120,
        axes={
            "train.noise_std": Axis(low=0.03, high=0.4, log=True),
            "train.learning_rate": Axis(low=1e-3, high=4e-3, log=True),
        },
    )
    diffusion: SearchStage = _stage(
        trials=2,
        steps=120,
        refit_steps=160,
        axes={
            "train.noise_std": _noise_axis(),
            "train.loss": Axis(choices=["regression", "nll"]),
            "model.time_input": Axis(choices=[False, True]),
            "train.learning_rate": Axis(low=1e-3, high=4e-3, log=True),
        },
    )
    joint: SearchStage = _stage(
        trials=3,
        steps=450,
        refit_steps=3800,
        axes={
            "sde.noise": Axis(choices=["input", "additive"]),
            "model.backbone": Axis(choices=["conv"]),
            "model.inner_dim": Axis(choices=[64]),
            "model.depth": Axis(choices=[2]),
            "train.loss": Axis(choices=["crps_energy", "crps"]),
            "train.score_share": Axis(low=0.3, high=0.7),
            "train.noise_std": Axis(low=0.01, high=0.1, log=True),
            "train.learning_rate": Axis(low=1e-3, high=5e-3, log=True),
        },
    )
    scheduler: Scheduler = option(
        "asha",
        "rule for stopping trials at a rung; asha: stop all but the best 1/k (search.reduction_factor) of the trials "
        "that have reached the rung so far; halving: the same, once all trials have reached it; median: stop trials "
        "that are worse than the median of the others; pbt: population based training, in which no trial stops but the "
        "worst fifth copy the weights of the best fifth and vary their settings; none: stop no trial",
    )
    rungs: int = option(
        2,
        "number of rungs, the points at which a trial is scored and compared; 1: only at its end",
    )
    reduction_factor: int = option(
        3,
        "k: asha and halving keep the best 1/k of the trials at a rung; a rung has k times the steps of the one before",
    )
    top_k: int = option(
        1,
        "number of best trials of a stage that become finalists, in addition to the best trial of each loss; finalists "
        "are retrained from scratch with several seeds",
    )
    margin: float = option(
        0.15, "the next stage uses the finalists whose CRPS ratio, once retrained, is at most this far above the best"
    )
    finalist_seeds: int = option(2, "number of seeds with which each finalist is retrained")
    keep: int | str = option(
        10,
        "trials of a stage whose weights stay when it is over, beside those of the finalists: a number (of the best), "
        "finalists (no others) or all, which also keeps the optimizers of ended trainings",
    )
    cpus_per_trial: int = option(1, "CPUs, and torch threads, per worker of a trial")
    gpus_per_trial: float = option(0.0, "GPUs per worker of a trial; a fraction shares a GPU")
    workers_per_trial: int = option(1, "Ray Train workers per trial; with 2 or more, a trial is run by a TorchTrainer")
    max_concurrent: int | None = option(
        None, "largest number of concurrent trials; null: as many as fit on the cluster"
    )
    minutes: float | None = option(
        None,
        "wall-clock minutes of each call of a search command, also with --resume; null: no bound; the time is divided "
        "among the trials, the retraining and the evaluation that are left, by measured durations; a stage whose share "
        "is used up goes on with the trials that it has, at least one, and --resume runs the others",
    )
    patience: int | None = option(
        None,
        "a stage ends when its best score has not improved in this many trials, in the order of their ends; failed "
        "trials, and the first ones, which the sampler draws at random, do not count; null: no such end; --resume runs "
        "the other trials of the stage once this is raised or null",
    )
    seed: int = option(0, "seed of the sampler and the scheduler")
    sampler: Literal["tpe", "gp", "nsga2", "random"] = option(
        "tpe", "Optuna sampler that proposes the trials: tpe, gp (Gaussian process), nsga2 or random"
    )
    objectives: list[Objective] = option(
        ["crps_ratio"],
        "what is minimized; crps_ratio: fair CRPS of forecasts over that of repeating the last frame; with "
        "nfe_per_frame, network evaluations per frame, as a second objective, all trials on the Pareto front become "
        "finalists: then make evaluation.steps an axis and set search.rungs to 1",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_stages(cls, given: Any) -> Any:
        """Add the defaults of a stage to a mapping that states only some of its fields."""
        if not isinstance(given, Mapping):
            return given
        defaults = cls().stages
        stated = {name: value for name, value in given.items() if name in defaults and isinstance(value, Mapping)}
        return {**given, **{name: {**vars(defaults[name]), **value} for name, value in stated.items()}}

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int) and not isinstance(value, bool) and f.name != "seed":
                least = 2 if f.name == "reduction_factor" else 1
                require(value >= least, f"search.{f.name}", f"at least {least}", value)
        require(0 <= self.seed < 2**31, "search.seed", "from 0 to below 2^31", self.seed)
        require(self.minutes is None or self.minutes > 0, "search.minutes", "above 0, or null", self.minutes)
        known = isinstance(self.keep, int) or self.keep in ("finalists", "all")
        require(known, "search.keep", "a number, finalists or all", self.keep)
        require(self.margin >= 0, "search.margin", "at least 0", self.margin)
        require(self.gpus_per_trial >= 0, "search.gpus_per_trial", "at least 0", self.gpus_per_trial)
        known = self.objectives in (["crps_ratio"], ["crps_ratio", "nfe_per_frame"])
        require(known, "search.objectives", "[crps_ratio] or [crps_ratio, nfe_per_frame]", self.objectives)
        plain = self.rungs == 1 or self.scheduler == "none"
        rule = "none with two objectives, unless search.rungs is 1"
        require(len(self.objectives) == 1 or plain, "search.scheduler", rule, self.scheduler)
        for name, stage in self.stages.items():
            require_least(0 if name == "joint" else 1, stage, f"search.{name}", "trials")
            require_least(1, stage, f"search.{name}", "steps", "refit_steps")
            for field_name, axis in stage.axes.items():
                self._check_conditions(f"search.{name}.axes: {field_name}: when", axis, stage.axes)
        # Tune does not hold the resources of a trial with several workers, so pausing the trial would not free them.
        alone, rule = self.workers_per_trial == 1, f"1 with search.scheduler {self.scheduler}"
        require(alone or not self.pauses, "search.workers_per_trial", rule, self.workers_per_trial)

    @staticmethod
    def _check_conditions(where: str, axis: Axis, axes: Mapping[str, Axis]) -> None:
        for name, allowed in axis.conditions().items():
            parent = axes.get(name)
            listed = parent is not None and parent.choices is not None and not parent.when
            require(listed, where, "an axis of this stage that has `choices` and no `when`", name)
            assert parent is not None and parent.choices is not None
            within = bool(allowed) and all(value in parent.choices for value in allowed)
            require(within, f"{where}: {name}", f"among {parent.choices}", allowed)

    @property
    def pauses(self) -> bool:
        """Whether the scheduler pauses trials, see `PAUSING`."""
        return self.scheduler in PAUSING

    @property
    def stages(self) -> dict[Component, SearchStage]:
        """The stages by name, in the order in which they run."""
        return {component: getattr(self, component) for component in COMPONENTS}

    @property
    def searched(self) -> tuple[Component, ...]:
        """The stages that have trials, in the order in which they run."""
        return tuple(component for component, stage in self.stages.items() if stage.trials > 0)
