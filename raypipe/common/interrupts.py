"""Ctrl-C: what it is known by, what a command says then, and libraries that replace its handler."""

import signal
import sys
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


AGAIN_SECONDS = 0.05
"""Time after which a Ctrl-C that was ignored is sent again."""


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Send a Ctrl-C again that Python ignores because it arrives in a finalizer or another callback.

    Python cannot raise a KeyboardInterrupt out of these, which run at any moment, and only prints it.
    """
    before = sys.unraisablehook

    def hook(ignored: "sys.UnraisableHookArgs") -> None:
        if ignored.exc_value is None or not was_interrupted(ignored.exc_value):
            before(ignored)
            return
        # By a thread, and later: sent from here, it would arrive here.
        main = threading.main_thread().ident
        assert main is not None
        again = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [main, signal.SIGINT])
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


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
