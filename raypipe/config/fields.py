"""Building blocks of config sections: fields with a help text, and checks that raise ConfigError."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from pydantic import ConfigDict

from raypipe.common.errors import ConfigError


def option(default: Any, text: str) -> Any:
    """A dataclass field with a help text, which `--help` prints. Each instance gets its own copy of a list or dict."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def section(cls: type) -> Any:
    """A field that holds a config section, by default one with all defaults."""
    return field(default_factory=cls)


def require(ok: bool, name: str, rule: str, value: object) -> None:
    """Raise ConfigError `<name>: must be <rule>, not <value>` unless `ok`."""
    if not ok:
        raise ConfigError(f"{name}: must be {rule}, not {value!r}")


class Section:
    """Base class of all config dataclasses: pydantic rejects unknown keys, nan and inf."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


def require_least(least: int, values: Section, prefix: str, *names: str) -> None:
    """Raise ConfigError unless each of the named fields of a section is at least `least`; errors say `prefix.name`."""
    for name in names:
        require(getattr(values, name) >= least, f"{prefix}.{name}", f"at least {least}", getattr(values, name))
