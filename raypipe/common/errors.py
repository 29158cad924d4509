"""Errors that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """An error that the user can fix, such as a damaged file, a wrong flag or too little memory.

    The message is one line: which file or field, what is wrong, what to do. Commands print it without a traceback and
    exit with code 2. Any other exception is a bug in raypipe and keeps its traceback.
    """


ConfigError = UserError
"""Alias of `UserError` for errors in a config or a flag."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the most similar known name, or an empty string if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextmanager
def as_user_error(kinds: type[Exception] | tuple[type[Exception], ...], what: str) -> Iterator[None]:
    """Convert exceptions of some kinds to a UserError, which begins with `what`; a UserError stays as it is."""
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        raise UserError(f"{what} ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or the name of its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
