"""Translation of old names of config fields, which stored experiments, users' files and command lines may contain.

The settings of a search stage were fields of `search`, such as `search.flow_trials`, and its axes were directly in
`search.flow`. Now each stage is a section: `search.flow.trials`, `search.flow.axes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raypipe.common.errors import ConfigError

STAGES = ("flow", "denoiser", "diffusion")
"""The stages that have old names. Later stages have none."""
SETTINGS = ("trials", "steps", "refit_steps")
NAMES = {f"search.{stage}_{name}": f"search.{stage}.{name}" for stage in STAGES for name in SETTINGS} | {
    f"search.{stage}": f"search.{stage}.axes" for stage in STAGES
}
"""The current name of each field by its old one, both dotted."""


def current_name(name: str) -> str:
    """The current name of a field, given by its dotted current or old name."""
    return NAMES.get(name, name)


def translate(tree: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """A nested dict with old names replaced by the current ones; other content is kept, valid or not.

    Raises ConfigError, which begins with `source`, if a field is given by both names with different values.
    """
    search = tree.get("search")
    if not isinstance(search, Mapping):
        return tree
    found = {stage: _settings(search, stage) for stage in STAGES}
    if not any(found.values()):
        return tree
    for stage in STAGES:
        if search.get(stage) == {}:  # next to old names, this is a stage without axes
            found[stage]["axes"] = {}
    rest = {key: value for key, value in search.items() if f"search.{key}" not in NAMES or key in STAGES}
    merged = {stage: _merged(stage, rest.get(stage, {}), found[stage], source) for stage in STAGES if found[stage]}
    return {**tree, "search": {**rest, **merged}}


def _settings(search: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """The settings of a stage that are given by old names, by current name within the stage."""
    found = {name: search[f"{stage}_{name}"] for name in SETTINGS if f"{stage}_{name}" in search}
    section = search.get(stage)
    axes = {key: value for key, value in section.items() if _is_axis(key)} if isinstance(section, Mapping) else {}
    return {**found, "axes": axes} if axes else found


def _is_axis(key: Any) -> bool:
    """Whether a key of a stage is the name of a searched field, such as train.loss; settings of a stage have no dot."""
    return isinstance(key, str) and "." in key


def _merged(stage: str, section: Any, old: Mapping[str, Any], source: str) -> Any:
    """The section of a stage with the settings from old names added."""
    if not isinstance(section, Mapping):
        return section
    current = {key: value for key, value in section.items() if not _is_axis(key)}
    for name, value in old.items():
        if name in current and current[name] != value:
            before = f"search.{stage}" if name == "axes" else f"search.{stage}_{name}"
            raise ConfigError(
                f"{source}: {before} is the old name of search.{stage}.{name}, and the two have different values "
                f"({value!r} and {current[name]!r}); remove the old one"
            )
    return {**current, **old}
