"""Run the tasks of a conversion in this process, in local processes, or on a running Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

from raypipe.common import terminal
from raypipe.common.cpus import cpu_count
from raypipe.common.errors import ConfigError, UserError
from raypipe.data.conversion import resuming
from raypipe.data.conversion.processes import ProcessDiedError, run_in_processes
from raypipe.data.conversion.resuming import State
from raypipe.data.conversion.shard import Outcome, Task

logger = logging.getLogger(__name__)

Run = Callable[[Sequence[Task], Callable[[int], None]], Generator[tuple[Task, Outcome], None, None]]
"""Runner of conversion tasks, with a callback for the number of new frames; yields each result when it is done."""


@contextmanager
def choose_runner(workers: int | None, use_cluster: bool = True) -> Iterator[Run]:
    """Choose the runner: this process for one worker, else a running Ray cluster, else local processes.

    workers: number of processes or of Ray tasks at a time; None for the number of CPUs of the machine or cluster.
    use_cluster: whether a cluster may be used, as its nodes see the folders.
    """
    if workers == 1:
        yield _run_here
        return
    if not use_cluster:
        yield partial(_run_locally, workers or cpu_count())
        return
    with _cluster() as cpus:
        if cpus is None:
            yield partial(_run_locally, workers or cpu_count())
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
    """Connect to a running Ray cluster (`connection.join`), never start one. Yields its number of CPUs.

    Yields None without a cluster, and after a warning for one that cannot be joined or has no CPU.
    """
    if os.environ.get("RAY_ADDRESS") == "local":
        yield None  # skip the slow import of Ray
        return
    import ray

    from raypipe.distributed import connection as cluster

    joined = ray.is_initialized()
    try:
        if not joined and not cluster.join():
            yield None
            return
    except ConfigError as error:
        logger.warning("%s; converting in processes of this machine instead", error)
        yield None
        return
    try:
        cpus = int(ray.cluster_resources().get("CPU", 0))
        if cpus >= 1 or cluster.scales_up():
            yield max(1, cpus)
        else:
            logger.warning("the Ray cluster has no CPU; converting in processes of this machine instead")
            yield None
    finally:
        if not joined:
            ray.shutdown()


def _run_on_ray(
    workers: int, tasks: Sequence[Task], progress: Callable[[int], None]
) -> Generator[tuple[Task, Outcome], None, None]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    from raypipe.distributed.waiting import Waiting, waiting_for

    remote = ray.remote(num_cpus=1)(resuming.make)
    left = list(reversed(tasks))
    running: dict[Any, Task] = {}
    waiting = Waiting(lambda: waiting_for(f"the conversion of {len(running)} shards", {"CPU": 1}))
    try:
        while left or running:
            while left and len(running) < workers:
                task = left.pop()
                running[remote.remote(task)] = task
            ready, _ = ray.wait(list(running), timeout=1.0)
            waiting.look(len(left) + len(running) - len(ready))
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


def convert_all(
    out: Path,
    tasks: dict[str, list[Task]],
    states: dict[str, State],
    workers: int | None,
    use_cluster: bool = True,
) -> dict[str, dict[str, Outcome]]:
    """Convert the missing shards of all splits together; return the outcomes by split and shard name.

    The manifest of a split is written as soon as its last shard is done. workers, use_cluster: see `choose_runner`.
    """
    done = {name: dict(state.done) for name, state in states.items()}
    open_splits = [name for name, state in states.items() if not state.finished]
    if not open_splits:
        return done
    left = [task for name in open_splits for task in states[name].left]
    every = [task for name in open_splits for task in tasks[name]]
    try:
        with (
            choose_runner(workers, use_cluster) as run,
            ConversionBar(every, [o for name in open_splits for o in done[name].values()]) as bar,
        ):
            for name in open_splits:
                resuming.begin(out / name, tasks[name], states[name])
                if not states[name].left:
                    resuming.finish(out / name, tasks[name], done[name])
            # Without closing(), an exception would leave the worker processes running until garbage collection.
            with closing(run(left, bar.frames)) as results:
                for task, outcome in results:
                    name = task.path.parent.name
                    done[name][task.path.name] = outcome
                    bar.shard(task, outcome)
                    if len(done[name]) == len(tasks[name]):
                        resuming.finish(out / name, tasks[name], done[name])
    finally:
        for name in open_splits:
            resuming.clean(out / name)
    return done


class ConversionBar:
    """Progress bar: frames, frames per second, clips, and the time left.

    The total number of frames is not known before decoding; it is extrapolated from the clips done so far.
    """

    def __init__(self, tasks: Sequence[Task], done: Sequence[Outcome]) -> None:
        self._clips = sum(len(task.sources) for task in tasks)
        self._sources = sum(o.sources for o in done)
        self._frames = sum(o.frames for o in done)
        self._bar = terminal.progress_bar("convert", None, "frame", initial=self._frames)
        self._bar.set_postfix_str(f"{self._sources}/{self._clips} clips")

    def frames(self, count: int) -> None:
        self._bar.update(count)

    def shard(self, task: Task, outcome: Outcome) -> None:
        self._sources += len(task.sources)
        self._frames += outcome.frames
        self._bar.total = max(self._bar.n, self._frames * self._clips // self._sources)
        self._bar.set_postfix_str(f"{self._sources}/{self._clips} clips")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
