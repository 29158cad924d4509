"""Errors that are the user's to mend, each one line: which file or field, what is wrong, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Bad input to an experiment: one line that names the field, the rule and the value."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the empty string if nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
