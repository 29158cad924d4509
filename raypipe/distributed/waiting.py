"""Say what a progress bar that stands still waits for."""

import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from tqdm import tqdm

from raypipe.distributed.capacity import Resources, amount
from raypipe.distributed.connection import scales_up

QUIET_SECONDS = 20.0
"""A bar may stand still this long before a line says what it waits for."""
LONGEST_SECONDS = 600.0
"""Longest time between two such lines; it doubles from one to the next."""


class Waiting:
    """Prints a line above the progress bars when the progress has stood still for a while.

    reason: what the work waits for; called only for a line. say: prints the line.
    """

    def __init__(self, reason: Callable[[], str], say: Callable[[str], None] | None = None) -> None:
        self._reason, self._say = reason, say or _above_the_bars
        self._position: Any = None
        self._since = time.monotonic()
        self._pause = QUIET_SECONDS

    def look(self, position: Any) -> None:
        """Compare the progress with that of the last call; call this at least once a second."""
        now = time.monotonic()
        if position != self._position:
            self._position, self._since, self._pause = position, now, QUIET_SECONDS
        elif now - self._since >= self._pause:
            self._say(self._reason())
            self._since, self._pause = now, min(2 * self._pause, LONGEST_SECONDS)


def _above_the_bars(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def waiting_for(what: str, each: Resources) -> str:
    """A line such as `waiting for 2 workers with 1 CPU each: the cluster has 2 CPUs (0 free)`.

    what: the work that is under way or queued. each: resources of one piece of it.
    """
    needed = {name: value for name, value in each.items() if value > 0}
    wanted = " and ".join(amount(name, value) for name, value in needed.items())
    try:
        total, free = ray.cluster_resources(), ray.available_resources()
    except (RayError, RuntimeError, ValueError) as error:  # the connection is lost
        return f"waiting for {what} with {wanted} each: the cluster does not answer ({type(error).__name__})"
    has = ", ".join(f"{amount(name, total.get(name, 0))} ({free.get(name, 0):g} free)" for name in needed)
    grows = ", and adds nodes if they are needed" if scales_up() else ""
    return f"waiting for {what} with {wanted} each: the cluster has {has}{grows}"
