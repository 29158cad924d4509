"""What an experiment is: frozen dataclasses, read from YAML, checked in one place.

Every field says what it means in its metadata, which is where ``--help`` takes it from. Unknown keys,
values of a wrong type and values out of range raise ``ConfigError`` with the field's dotted name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from raypipe import published_config
from raypipe.common.errors import ConfigError as ConfigError
from raypipe.common.errors import nearest
from raypipe.rules import Section, option, require, require_least, section
from raypipe.training_config import COMPONENTS as COMPONENTS
from raypipe.training_config import LOSSES as LOSSES
from raypipe.training_config import Autoencoder as Autoencoder
from raypipe.training_config import Component as Component
from raypipe.training_config import Model as Model
from raypipe.training_config import Train as Train

Solver = Literal["euler_maruyama", "milstein", "heun"]
SOLVERS: tuple[Solver, ...] = ("euler_maruyama", "milstein", "heun")
"""`raypipe.sde.solvers` says what each is."""
Objective = Literal["crps_ratio", "nfe_per_frame"]


@dataclass(frozen=True)
class Dataset(Section):
    """Which videos, and how clips are cut out of them."""

    name: str = option("demo", "the dataset's name; `demo` is simulated on first use")
    root: str | None = option(
        None, "folder or URI (s3://, gs://, ...) with train/ val/ test/ below; none: <storage>/datasets/<name>"
    )
    cache: str = option("~/.cache/raypipe", "each node's folder for copies of shards whose root is a URI")
    cache_gb: float = option(50.0, "size of that folder; what was used longest ago makes room")
    stall_seconds: float = option(60.0, "a transfer from a URI fails when no byte comes for so long")
    image_size: int = option(64, "frames are squares of this many pixels")
    frame_stride: int = option(1, "take every k-th frame; one frame interval is then k video frames")
    num_frames: int = option(12, "frames of a clip that is forecast: the given ones and the predicted ones")
    horizontal_flip: bool = option(False, "flip half of the training clips; needs latents.mode: off")
    color_jitter: bool = option(False, "jitter the colours of training clips; needs latents.mode: off")

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[\w.-]+", self.name)), "dataset.name", "letters, digits, '.', '_', '-'", self.name)
        size = self.image_size
        require(size >= 16 and size % 8 == 0, "dataset.image_size", "a multiple of 8 from 16 on", size)
        require(self.cache_gb > 0, "dataset.cache_gb", "above 0", self.cache_gb)
        require(self.stall_seconds > 0, "dataset.stall_seconds", "above 0", self.stall_seconds)
        require(self.frame_stride >= 1, "dataset.frame_stride", "at least 1", self.frame_stride)


@dataclass(frozen=True)
class Demo(Section):
    """The simulated dataset: how many clips, and how hard they are to foresee."""

    train_clips: int = option(400, "clips of the training split")
    val_clips: int = option(64, "clips of the validation split")
    test_clips: int = option(128, "clips of the test split")
    clip_frames: int = option(24, "frames a clip")
    kick_probability: float = option(0.03, "chance that a body is kicked in a frame")
    seed: int = option(0, "seed of the simulation")

    def __post_init__(self) -> None:
        require_least(1, self, "demo", "train_clips", "val_clips", "test_clips", "clip_frames")
        require(0 <= self.kick_probability <= 1, "demo.kick_probability", "from 0 to 1", self.kick_probability)


@dataclass(frozen=True)
class Latents(Section):
    """Whether the components train on frames encoded once, or encoded anew every step."""

    mode: Literal["cache", "off"] = option("cache", "`cache`: encode every frame once; `off`: encode on the fly")

    @classmethod
    def from_yaml(cls, value: object) -> object:
        """`latents: off` (which YAML reads as false) and `latents: cache` are short for the mode."""
        return {"mode": "off"} if value is False else {"mode": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Sde(Section):
    """The path between two frames, and what is learnt along it."""

    sigma: float = option(1e-7, "width of the path at its end")
    delta: float = option(1e-3, "floor of the flow's `nll` loss")
    zero_share: float = option(0.3, "share of draws at u = 0, where the model sees u")

    def __post_init__(self) -> None:
        require(0 <= self.sigma < 1, "sde.sigma", "from 0 to below 1", self.sigma)
        require(self.delta > 0, "sde.delta", "above 0", self.delta)
        require(0 <= self.zero_share <= 1, "sde.zero_share", "from 0 to 1", self.zero_share)


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
"""`raypipe.schedulers` says what each is."""
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


@dataclass(frozen=True)
class Evaluation(Section):
    """The forecasts that trials and combinations are scored on."""

    windows: int = option(64, "held-out windows a trial is scored on")
    test_windows: int = option(128, "test windows that the chosen combination and the baselines are scored on, once")
    fit_windows: int = option(16, "training windows that multipliers and beta are fitted on")
    horizon: int = option(8, "frames predicted")
    members: int = option(4, "ensemble members of a forecast on validation")
    test_members: int = option(4, "ensemble members of a forecast on test")
    steps: list[int] = option([1, 2], "integration steps a frame to choose from; the first scores the trials")
    solvers: list[Solver] = option(
        ["euler_maruyama"], "solvers to choose from: euler_maruyama, milstein, heun; the first scores the trials"
    )
    alphas: list[float] = option([1.0], "denoising magnitudes to choose from")
    multipliers: list[float] = option(
        [0.3, 0.45, 0.65, 0.85, 1.1], "multipliers of the flow's residual std to choose a constant diffusion from"
    )
    betas: list[float] = option([0.5, 0.75, 1.0, 1.5, 2.0], "diffusion magnitudes to choose from")
    climatology_members: int = option(16, "training frames in the climatology's ensemble")
    finalists: int = option(4, "combinations that are decoded and scored in pixels on validation")
    batch_size: int | None = option(
        None, "forecasts (windows x members) integrated at once; none: as many as fit, or as a CPU's caches like"
    )
    compile: bool = option(
        False, "torch.compile the networks of forecasts: minutes at first, then faster; pays where much is forecast"
    )
    seed: int = option(0, "seed of windows and noise; the same for every trial")

    def __post_init__(self) -> None:
        require_least(1, self, "evaluation", "windows", "test_windows", "fit_windows", "horizon", "finalists")
        require(self.batch_size is None or self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        require(bool(self.solvers), "evaluation.solvers", "one or more", self.solvers)
        require_least(2, self, "evaluation", "members", "test_members", "climatology_members")
        require(bool(self.steps) and min(self.steps) >= 1, "evaluation.steps", "one or more counts of 1 on", self.steps)
        require(bool(self.alphas) and min(self.alphas) >= 0, "evaluation.alphas", "one or more from 0 on", self.alphas)
        require(
            bool(self.multipliers) and min(self.multipliers) > 0,
            "evaluation.multipliers",
            "one or more above 0",
            self.multipliers,
        )
        require(bool(self.betas) and min(self.betas) > 0, "evaluation.betas", "one or more above 0", self.betas)


@dataclass(frozen=True)
class Experiment(Section):
    """All of the above. ``name`` is the folder of its files under the storage root."""

    name: str = option("demo", "folder of the experiment under the storage root; left out, the dataset's name")
    dataset: Dataset = section(Dataset)
    demo: Demo = section(Demo)
    autoencoder: Autoencoder = section(Autoencoder)
    latents: Latents = section(Latents)
    model: Model = section(Model)
    sde: Sde = section(Sde)
    train: Train = section(Train)
    search: Search = section(Search)
    evaluation: Evaluation = section(Evaluation)

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[\w.-]+", self.name)), "name", "letters, digits, '.', '_', '-'", self.name)
        augmented = self.dataset.horizontal_flip or self.dataset.color_jitter
        require(not augmented or self.latents.mode == "off", "latents.mode", "off with augmentation", self.latents.mode)
        frames, given, horizon = self.dataset.num_frames, self.model.num_input_frames, self.evaluation.horizon
        require(frames > given, "dataset.num_frames", f"above model.num_input_frames ({given})", frames)
        rule = f"at most dataset.num_frames - model.num_input_frames ({frames - given})"
        require(horizon <= frames - given, "evaluation.horizon", rule, horizon)
        known = dict(field_names())
        for component in COMPONENTS:
            for name in self.search.axes(component):
                if name not in known:
                    raise ConfigError(f"search.{component}: unknown field {name!r}{nearest(name, known)}")
                if not _searchable(name):
                    raise ConfigError(
                        f"search.{component}: {name!r} is the same for all trials, or their scores could not be "
                        "compared; axes are settings of model, train and sde, evaluation.steps and evaluation.solvers"
                    )


FIXED = {
    *("model.num_input_frames", "train.component", "train.steps", "train.checkpoint_every", "train.random_seed"),
    *("train.num_workers", "train.cpus_per_worker", "train.max_failures", "train.compile", "train.flow"),
}
"""Fields of model and train that are not a trial's to choose: the task, its budget, and how it runs."""


def _searchable(name: str) -> bool:
    of_a_trial = name.split(".")[0] in ("model", "train", "sde") and name not in FIXED
    return of_a_trial or name in ("evaluation.steps", "evaluation.solvers")


def field_names(cls: type = Experiment, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """The dotted name and the dataclass field of every leaf."""
    hints = _hints(cls)
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            yield from field_names(cast(type, hint), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f


def field_default(f: dataclasses.Field[Any]) -> Any:
    """The default of a leaf field."""
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _known_at(path: Sequence[str | int]) -> list[str]:
    """Names of the fields beside the last part of `path`."""
    cls: Any = Experiment
    for part in path[:-1]:
        hint = _hints(cast(type, cls)).get(str(part))
        cls = hint if dataclasses.is_dataclass(hint) else Axis
    return [f.name for f in dataclasses.fields(cls)]


def from_dict(tree: Mapping[str, Any], source: str = "config") -> Experiment:
    """Validate a nested dict. ConfigError names `source`, the field, the rule and the value.

    An experiment without a name takes its dataset's.
    """
    tree = dict(tree)
    if "name" not in tree and isinstance(tree.get("dataset"), Mapping) and "name" in tree["dataset"]:
        tree["name"] = tree["dataset"]["name"]
    if "latents" in tree:
        tree["latents"] = Latents.from_yaml(tree["latents"])
    experiment = _validate(tree, source)
    plain = to_dict(experiment)
    for component in COMPONENTS:
        fixed: dict[str, Any] = {"search": {}, "train.component": component, "train.loss": None}
        for name, axis in experiment.search.axes(component).items():
            under = {other: allowed[0] for other, allowed in axis.conditions().items()}
            for value in axis.extremes():
                _validate(override(plain, {**fixed, **under, name: value}), f"{source}: search.{component}")
    return experiment


def _validate(tree: Mapping[str, Any], source: str) -> Experiment:
    try:
        return _adapter().validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            hint = nearest(str(first["loc"][-1]), _known_at(first["loc"]))
            raise ConfigError(f"{source}: unknown key {where!r}{hint}") from None
        if first["type"] == "value_error":
            reason = re.sub("^axis", lambda _: where, str(first["ctx"]["error"]))
            raise ConfigError(f"{source}: {reason}") from None
        message = first["msg"][0].lower() + first["msg"][1:]
        raise ConfigError(f"{source}: {where}: {message}, not {first['input']!r}") from None


def to_dict(experiment: Any) -> dict[str, Any]:
    """Plain types only, as YAML and JSON take them."""
    return cast("dict[str, Any]", _plain(dataclasses.asdict(experiment)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def override(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested dict with fields replaced by dotted name; unknown names are left to `from_dict`."""
    result = cast("dict[str, Any]", _plain(tree))
    for name, value in values.items():
        node = result
        *parents, leaf = name.split(".")
        for parent in parents:
            node[parent] = node.get(parent) if isinstance(node.get(parent), dict) else {}
            node = node[parent]
        node[leaf] = _plain(value)
    return result


def replace(experiment: Experiment, **values: Any) -> Experiment:
    """`replace(e, **{"train.noise_std": 0.3})`: a validated copy."""
    return from_dict(override(to_dict(experiment), values), source="override")


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number, as YAML 1.2 does and the library does not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def parse_value(text: str) -> Any:
    """A command-line value as YAML reads it, with 1e-3 as a number."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read and validate a YAML file, of ours or of the published code.

    Raises ConfigError for a file that is missing, is not YAML or does not describe an experiment.
    """
    tree = read_yaml(path)
    if published_config.is_published(tree):
        try:
            tree = published_config.translate(tree)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    if "latents" in tree:
        tree = {**tree, "latents": Latents.from_yaml(tree["latents"])}
    return from_dict(override(tree, overrides or {}), source=str(path))


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """A file's sections, not validated. Raises ConfigError if it is missing or no YAML mapping."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; the built-in ones are in experiments/configs")
    try:
        tree = yaml.load(path.read_text(), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: must be a mapping of sections, not {type(tree).__name__}")
    return tree
