"""Who makes shards: this process, processes beside it, or tasks on the Ray cluster that is up."""

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
"""Makes tasks, telling how many frames were added; gives them as they end."""


@contextmanager
def choose_runner(workers: int | None) -> Iterator[Run]:
    """What makes shards: this process, processes beside it, or tasks on a Ray cluster that is up."""
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
        # Closed by hand: an interrupted loop would leave it, and the processes, to the garbage collector.
        with closing(run_in_processes(resuming.make, tasks, workers, progress)) as results:
            yield from results
    except ProcessDiedError as error:
        raise UserError(_died(error.task, error.how)) from None


def _died(task: Task, how: str) -> str:
    return (
        f"{task.path}: the process making it was {how}, out of memory or disk space perhaps; the same command goes on"
        f" from here, with fewer --num-workers if memory is short"
    )


@contextmanager
def _cluster() -> Iterator[int | None]:
    """Join the Ray that is up (`connection.join`); never start one. Gives its CPUs, None without one."""
    if os.environ.get("RAY_ADDRESS") == "local":
        yield None  # without importing Ray
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
                    raise UserError(_died(task, f"lost ({type(error).__name__})")) from None
                progress(outcome.frames)
                yield task, outcome
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
