"""Ctrl-C while a library runs that replaces the handler of the signal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


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
