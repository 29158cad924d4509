"""Packages that are installed only with an extra of pyproject.toml."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from raypipe.common.errors import UserError


def need(module: str, extra: str, what: str) -> Any:
    """Import a module of an extra. what: what needs it, for the UserError that is raised where it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(
            f"{what} needs the package {error.name}, which is not installed; pip install 'raypipe[{extra}]', or in a "
            f"checkout -e '.[{extra}]'"
        ) from None
