"""How a config section is written: fields with their meaning, and checks that raise ConfigError."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from pydantic import ConfigDict

from raypipe.common.errors import ConfigError


def option(default: Any, text: str) -> Any:
    """A field with its one-line meaning; a list or dict default becomes a fresh copy per instance."""
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def section(cls: type) -> Any:
    return field(default_factory=cls)


def require(ok: bool, name: str, rule: str, value: object) -> None:
    if not ok:
        raise ConfigError(f"{name}: must be {rule}, not {value!r}")


class Section:
    """Base of the dataclasses below: no unknown keys, no nan or inf."""

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)


def require_least(least: int, values: Section, prefix: str, *names: str) -> None:
    for name in names:
        require(getattr(values, name) >= least, f"{prefix}.{name}", f"at least {least}", getattr(values, name))
