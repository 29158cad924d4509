"""The configuration of a whole experiment: reading, validating and changing it.

Every field has a help text in its metadata, which ``--help`` prints. Unknown keys, values of a wrong type and
values out of range raise ``ConfigError`` with the dotted name of the field.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from raypipe.common.errors import ConfigError, first_line, nearest
from raypipe.config import old_names, reference
from raypipe.config.dataset import Dataset, Demo, Latents
from raypipe.config.fields import Section, option, require, section
from raypipe.config.search import Axis, Search
from raypipe.config.sections import RIVALS, Autoencoder, Evaluation, Model, Rival, Sde, Train


@dataclass(frozen=True)
class Experiment(Section):
    """The configuration of an experiment, one attribute per section.

    ``name`` is also the name of the experiment's folder under the storage root. Raises ConfigError if fields of
    different sections contradict each other.
    """

    name: str = option(
        "demo", "name of the experiment and of its folder under the storage root (default: dataset.name)"
    )
    rivals: list[Rival] = option(
        [],
        "models of the literature that are trained after the search, for as long as its winner, and compared with it: "
        "flow_matching, foellmer (default: both; none for the built-in dataset)",
    )
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
        require(
            bool(re.fullmatch(r"[\w.-]+", self.name)), "name", "made of letters, digits, '.', '_' and '-'", self.name
        )
        require(len({*self.rivals}) == len(self.rivals), "rivals", "a list without repetitions", self.rivals)
        mode, jitter, reversal = self.latents.mode, self.dataset.color_jitter, self.dataset.time_reversal
        require(not jitter or mode == "off", "latents.mode", "off if dataset.color_jitter is set", mode)
        require(not reversal or mode == "cache", "latents.mode", "cache if dataset.time_reversal is set", mode)
        frames, given, horizon = self.dataset.num_frames, self.model.num_input_frames, self.evaluation.horizon
        require(frames > given, "dataset.num_frames", f"above model.num_input_frames ({given})", frames)
        rule = f"at most dataset.num_frames - model.num_input_frames ({frames - given})"
        require(horizon <= frames - given, "evaluation.horizon", rule, horizon)
        known = _fields()
        for stage, settings in self.search.stages.items():
            for name in settings.axes:
                if name not in known:
                    raise ConfigError(f"search.{stage}.axes: unknown field {name!r}{nearest(name, known)}")
                if not _searchable(name):
                    raise ConfigError(
                        f"search.{stage}.axes: {name!r} must be the same in all trials, so that they are comparable; "
                        "axes can be evaluation.steps, evaluation.solvers, fields of sde, and most of model and train"
                    )


FIXED = {
    *("model.num_input_frames", "train.component", "train.steps", "train.checkpoint_every", "train.random_seed"),
    *("train.num_workers", "train.cpus_per_worker", "train.max_failures", "train.compile", "train.flow"),
    *("train.validate_every", "train.patience"),
}
"""Fields of model and train that cannot be searched: they define the task, its budget, or how it is executed."""


def _searchable(name: str) -> bool:
    varies = name.split(".")[0] in ("model", "train", "sde") and name not in FIXED
    return varies or name in ("evaluation.steps", "evaluation.solvers")


def field_names(cls: type = Experiment, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Yield the dotted name and the dataclass field of every config field that is not itself a section."""
    hints = _hints(cls)
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            yield from field_names(cast(type, hint), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", f


@cache
def _fields() -> Mapping[str, dataclasses.Field[Any]]:
    return dict(field_names())


def field_value(experiment: Experiment, name: str) -> Any:
    """The value of a field, by dotted name."""
    value: Any = experiment
    for part in name.split("."):
        value = getattr(value, part)
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


@cache
def _adapter() -> TypeAdapter[Experiment]:
    return TypeAdapter(Experiment)


def _known_at(path: Sequence[str | int]) -> list[str]:
    """Names of all fields of the section or axis that the last part of `path` was looked up in."""
    cls: Any = Experiment
    for part in path[:-1]:
        hint = _hints(cast(type, cls)).get(str(part))
        cls = hint if dataclasses.is_dataclass(hint) else Axis
    return [f.name for f in dataclasses.fields(cls)]


def from_dict(tree: Mapping[str, Any], source: str = "config") -> Experiment:
    """Validate a nested dict and make an Experiment of it.

    An experiment without a name gets the name of its dataset, and one without `rivals` all of them, unless its dataset
    is the built-in demo. Raises ConfigError with `source`, the dotted name of the field, what is wrong and the value.
    """
    tree = dict(old_names.translate(tree, source))
    if "name" not in tree and isinstance(tree.get("dataset"), Mapping) and "name" in tree["dataset"]:
        tree["name"] = tree["dataset"]["name"]
    experiment = _validate(tree, source)
    if "rivals" not in tree and not experiment.dataset.is_demo:
        experiment = dataclasses.replace(experiment, rivals=list(RIVALS))
    _check_space(experiment, source)
    return experiment


def _check_space(experiment: Experiment, source: str) -> None:
    """Raise ConfigError if an axis can propose a value that its field refuses."""
    plain = to_dict(experiment)
    for stage, settings in experiment.search.stages.items():
        fixed: dict[str, Any] = {"search": {}, "train.component": stage, "train.loss": None}
        for name, axis in settings.axes.items():
            under = {other: allowed[0] for other, allowed in axis.conditions().items()}
            for value in axis.extremes():
                _validate(override(plain, {**fixed, **under, name: value}), f"{source}: search.{stage}.axes")


def _validate(tree: Mapping[str, Any], source: str) -> Experiment:
    if "latents" in tree:
        tree = {**tree, "latents": Latents.from_yaml(tree["latents"])}
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
    """A config dataclass as a nested dict of plain types, which YAML and JSON can store."""
    return cast("dict[str, Any]", _plain(dataclasses.asdict(experiment)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def override(tree: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict with fields replaced by dotted name; sections without a replaced field are those of `tree` itself.

    Not validated: `from_dict` refuses unknown names.
    """
    result = dict(tree)
    for name, value in values.items():
        node = result
        *parents, leaf = name.split(".")
        for parent in parents:
            section = node.get(parent)
            node[parent] = dict(section) if isinstance(section, Mapping) else {}
            node = node[parent]
        node[leaf] = _plain(value)
    return result


def replace(experiment: Experiment, **values: Any) -> Experiment:
    """A validated copy with some fields changed, by dotted name: `replace(e, **{"train.noise_std": 0.3})`.

    Raises ConfigError as `from_dict` does. The search space is validated only if a field of `search` changes: that
    takes ten times as long as the rest, and a search makes a copy for each trial.
    """
    changed = _validate(override(to_dict(experiment), values), "override")
    if any(name.split(".")[0] == "search" for name in values):
        _check_space(changed, "override")
    return changed


_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Ten times as fast where PyYAML was built with libyaml."""


class _Loader(_SafeLoader):
    """YAML loader that reads 1e-3 as a number, as YAML 1.2 requires; PyYAML reads it as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def parse_value(text: str) -> Any:
    """Parse a command-line value as YAML, with 1e-3 as a number. Text that is not YAML is returned as it is."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Read and validate a YAML config of raypipe or of the reference code; `overrides` replace fields by dotted name.

    Raises ConfigError for a file that is missing, is not YAML or does not describe an experiment.
    """
    return from_dict(override(_read(path), overrides or {}), source=str(path))


def load_stored(path: str | Path) -> Experiment:
    """`load` for the config of an experiment that has begun: what did not exist at that time is left out of it."""
    tree = _read(path)
    search = tree.get("search")
    begun_with = search if isinstance(search, Mapping) else {}
    later: dict[str, Any] = {"search.joint.trials": 0} if "joint" not in begun_with else {}
    later |= {"rivals": []} if "rivals" not in tree else {}
    return from_dict(override(tree, later), source=str(path))


def stated(path: str | Path) -> dict[str, Any]:
    """The values of the fields that a YAML config states, by dotted name; not validated. Fields left out are omitted.

    Raises ConfigError as `load` does for a file that is missing or not YAML.
    """
    found, tree = {}, _read(path)
    for name, _ in field_names():
        node: Any = tree
        for part in name.split("."):
            node = node.get(part, dataclasses.MISSING) if isinstance(node, Mapping) else dataclasses.MISSING
        if node is not dataclasses.MISSING:
            found[name] = node
    return found


def differences(a: Experiment, b: Experiment) -> dict[str, tuple[Any, Any]]:
    """The fields with different values in two experiments: both values, by dotted name."""
    pairs = {name: (field_value(a, name), field_value(b, name)) for name, _ in field_names()}
    return {name: (x, y) for name, (x, y) in pairs.items() if x != y}


def _read(path: str | Path) -> Mapping[str, Any]:
    """A YAML config as a nested dict: a config of the reference code and old names translated, short forms expanded."""
    tree = old_names.translate(read_yaml(path), str(path))
    if reference.is_published(tree):
        try:
            tree = reference.translate(tree)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return {**tree, "latents": Latents.from_yaml(tree["latents"])} if "latents" in tree else tree


def read_yaml(path: str | Path) -> Mapping[str, Any]:
    """The content of a YAML file, not validated. Raises ConfigError if it is missing or not a YAML mapping."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file; raypipe's own are in experiments/configs")
    try:
        tree = yaml.load(path.read_text(), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({first_line(error)})") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: must be a mapping of sections, not {type(tree).__name__}")
    return tree
