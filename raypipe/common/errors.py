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


RESUME = "run the same command with --resume to continue"
"""Message of a KeyboardInterrupt after which `--resume` continues; commands print it on Ctrl-C."""


def was_interrupted(error: BaseException) -> bool:
    """Whether an exception is a KeyboardInterrupt, or was raised in the place of one.

    Python 3.11 raises a RuntimeError for a Ctrl-C that arrives while it creates a class (in `__set_name__`), and so
    does a library that is interrupted while it starts or cleans up.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return False


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
