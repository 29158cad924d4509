"""Run the tasks of a conversion in this process, in local processes, or on a running Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from raypipe.common.errors import UserError
from raypipe.data.conversion import resuming
from raypipe.data.conversion.processes import ProcessDiedError, run_in_processes
from raypipe.data.conversion.shard import Outcome, Task

Run = Callable[[Sequence[Task], Callable[[int], None]], Generator[tuple[Task, Outcome], None, None]]
"""Runner of conversion tasks, with a callback for the number of new frames; yields each result when it is done."""


@contextmanager
def choose_runner(workers: int | None) -> Iterator[Run]:
    """Choose the runner: this process for one worker, else a running Ray cluster, else local processes.

    workers: number of processes or of Ray tasks at a time; None for the number of CPUs of the machine or cluster.
    """
    if workers == 1:
        yield _run_here
        return
    with _cluster() as cpus:
        if cpus is None:
            yield partial(_run_locally, workers or os.cpu_count() or 1)
        else:
            yield partial(_run_on_ray, workers or cpus)


def _run_here(tasks: Sequence[Task], progress: Callable[[int], None]) -> Generator[tuple[Task, Outcome], None, None]:
    for task in tasks:
        yield task, resuming.make(task, progress)


def _run_locally(
    workers: int, tasks: Sequence[Task], progress: Callable[[int], None]
) -> Generator[tuple[Task, Outcome], None, None]:
    if min(workers, len(tasks)) <= 1:
        yield from _run_here(tasks, progress)
        return
    try:
        # Without closing(), an interrupted loop would leave the worker processes running until garbage collection.
        with closing(run_in_processes(resuming.make, tasks, workers, progress)) as results:
            yield from results
    except ProcessDiedError as error:
        raise UserError(_died(error.task, error.how)) from None


def _died(task: Task, how: str) -> str:
    return (
        f"{task.path}: the process writing it died ({how}), perhaps out of memory or disk space; run the same command"
        f" again to resume, with fewer --num-workers if memory is short"
    )


@contextmanager
def _cluster() -> Iterator[int | None]:
    """Connect to a running Ray cluster (`connection.join`), never start one. Yields its number of CPUs, or None."""
    if os.environ.get("RAY_ADDRESS") == "local":
        yield None  # skip the slow import of Ray
        return
    import ray

    from raypipe.distributed import connection as cluster

    joined = ray.is_initialized()
    if not joined and not cluster.join():
        yield None
        return
    try:
        yield max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if not joined:
            ray.shutdown()


def _run_on_ray(
    workers: int, tasks: Sequence[Task], progress: Callable[[int], None]
) -> Generator[tuple[Task, Outcome], None, None]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    remote = ray.remote(num_cpus=1)(resuming.make)
    waiting = list(reversed(tasks))
    running: dict[Any, Task] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop()
                running[remote.remote(task)] = task
            ready, _ = ray.wait(list(running), timeout=1.0)
            for reference in ready:
                task = running.pop(reference)
                try:
                    outcome: Outcome = ray.get(reference)
                except RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, UserError) else error) from None
                except RayError as error:
                    raise UserError(_died(task, type(error).__name__)) from None
                progress(outcome.frames)
                yield task, outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
