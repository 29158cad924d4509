"""Errors that are the user's to mend, each one line: which file or field, what is wrong, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something that the user can mend: a file, a flag, a machine that is too small.

    The message is one line: which file or field, what is wrong, what to do. Commands print it without a traceback and
    exit with 2; every other exception is a defect of raypipe and keeps its traceback.
    """


ConfigError = UserError
"""The name of `UserError` where a config or a flag is at fault."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the empty string if nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
