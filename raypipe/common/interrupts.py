"""Ctrl-C: what it is known by, what a command says then, and libraries that replace its handler."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def interrupts_restored() -> Iterator[None]:
    """Restore the handler of Ctrl-C after a `with` block.

    Ray Train and Ray Tune leave theirs behind; a later Ctrl-C would only tell a search that is over to stop.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
