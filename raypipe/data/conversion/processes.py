"""Run tasks in worker processes that can be stopped at any time; a worker's death is detected."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int], None]


class ProcessDiedError(RuntimeError):
    """A worker process was killed or crashed. task: the task it was running. how: `killed by SIGKILL` or similar."""

    def __init__(self, task: Any, how: str) -> None:
        super().__init__(how)
        self.task, self.how = task, how


def run_in_processes(
    work: Callable[[T, Progress], R], tasks: Sequence[T], processes: int, progress: Progress
) -> Generator[tuple[T, R], None, None]:
    """Run `work(task, report)` for every task and yield (task, result) as they end.

    report: sends an amount of progress to `progress` in this process. A ValueError or OSError raised by a task stops
    all workers and is raised here. Closing the generator early terminates the workers. A worker whose parent process
    is gone exits at its next report. Raises ProcessDiedError if a worker dies.
    """
    # `spawn`, because forking a process with threads (tqdm, FFmpeg) can deadlock.
    context = get_context("spawn")
    waiting = list(reversed(tasks))
    running: dict[Connection, tuple[BaseProcess, T]] = {}
    idle: list[Connection] = []
    every: list[BaseProcess] = []
    try:
        for _ in range(min(processes, len(tasks))):
            ours, theirs = context.Pipe()
            process: BaseProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            every.append(process)
            running[ours] = (process, waiting.pop())
            _start(ours, *running[ours])
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, task = running[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    raise _death(process, task) from None
                if kind == "progress":
                    progress(content)
                elif kind == "error":
                    raise content
                else:
                    if waiting:
                        running[connection] = (process, waiting.pop())
                        _start(connection, *running[connection])
                    else:
                        del running[connection]
                        idle.append(connection)
                    yield task, content
    finally:
        for process in every:
            process.terminate()
        for process in every:
            process.join()
        for connection in [*running, *idle]:
            connection.close()


def _start(connection: Connection, process: BaseProcess, task: Any) -> None:
    """Give a worker a task. Raises ProcessDiedError if it died since its last task."""
    try:
        connection.send(task)
    except OSError:
        raise _death(process, task) from None


def _death(process: BaseProcess, task: Any) -> ProcessDiedError:
    process.join()
    return ProcessDiedError(task, _how(process.exitcode))


def _serve(connection: Connection, work: Callable[[Any, Progress], Any]) -> None:
    # Ctrl-C is sent to every process of the terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, ConnectionError):
        while True:
            task = connection.recv()
            try:
                result = work(task, lambda amount: connection.send(("progress", amount)))
            except ConnectionError:
                raise
            except (ValueError, OSError) as error:
                connection.send(("error", error))
            else:
                connection.send(("result", result))


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
