"""Tasks in processes of their own, which can be stopped at once and whose death is noticed."""

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
    """A process was killed from outside, or crashed. task: what it was at. how: in words."""

    def __init__(self, task: Any, how: str) -> None:
        super().__init__(how)
        self.task, self.how = task, how


def run_in_processes(
    work: Callable[[T, Progress], R], tasks: Sequence[T], processes: int, progress: Progress
) -> Generator[tuple[T, R], None, None]:
    """`work(task, report)` of every task, as they end; `progress` gets what `report` is given.

    What a task raises ends all and is raised here. Leaving early stops the processes where they are. A process
    whose parent is gone ends by itself at its next report. Raises ProcessDiedError.
    """
    # `spawn`, because forking a process that has threads (tqdm, FFmpeg) may deadlock.
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
            running[ours] = (process, waiting[-1])
            ours.send(waiting.pop())
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                process, task = running[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    raise ProcessDiedError(task, _how(process.exitcode)) from None
                if kind == "progress":
                    progress(content)
                elif kind == "error":
                    raise content
                else:
                    if waiting:
                        running[connection] = (process, waiting[-1])
                        connection.send(waiting.pop())
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


def _serve(connection: Connection, work: Callable[[Any, Progress], Any]) -> None:
    # Ctrl-C reaches every process of the terminal; only the parent acts on it.
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
