"""Choose the experiment that a command works on, and lock it against other processes."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from raypipe.common.interrupts import RESUME, was_interrupted
from raypipe.common.locks import Timeout, file_lock, is_locked
from raypipe.config import ConfigError
from raypipe.workspace import bucket
from raypipe.workspace.layout import Workspace

SHOWN = 8
"""Number of names that a message lists."""
LOCK = "search.lock"
"""Lock file held by the process that runs a search or a training; it contains the process ID and the host."""
LOOK_SECONDS = 0.2
"""A lock that is not free after this time is held by a process that works, not by one that looks (`runner`)."""


def claim(storage: Path, name: str) -> Workspace:
    """Create the folder of a new experiment, named by the first unused of `name`, `name-2`, `name-3`, ..."""
    for number in itertools.count(1):
        workspace = Workspace(storage, name if number == 1 else f"{name}-{number}")
        try:
            workspace.folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return workspace
    raise AssertionError


def unclaimed(storage: Path, name: str) -> Workspace:
    """The workspace that `claim` would create the folder of."""
    named = (Workspace(storage, name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(workspace for workspace in named if not workspace.folder.exists())


def runner(workspace: Workspace) -> str | None:
    """The process that runs a search in the experiment, such as `process 17 on host`; None if none does."""
    path = workspace.folder / LOCK
    if is_locked(path):
        return path.read_text().strip() or "a process"
    return bucket.runner(workspace.storage, workspace.name)


@contextmanager
def hold(workspace: Workspace, *, break_lock: bool = False) -> Iterator[None]:
    """Lock an experiment for the duration of a `with` block, and keep it in the bucket of its storage root, if any.

    break_lock: see `bucket.stored`. Raises ConfigError if another process has locked it.

    If the block fails before an experiment has begun in the folder, the folder is removed; after Ctrl-C or a kill it is
    kept, so that --resume finds it.
    """
    folder = workspace.folder
    busy = "is running this search; wait until it ends, or start another search with a different --name"
    with (
        resumable(folder, busy, lambda: (folder / "config.yaml").exists(), [folder]),
        bucket.stored(workspace.storage, workspace.name, break_lock=break_lock),
    ):
        yield


@contextmanager
def resumable(folder: Path, busy: str, begun: Callable[[], bool], made: Sequence[Path]) -> Iterator[None]:
    """Create and lock the folder of something that --resume continues, for the duration of a `with` block.

    After Ctrl-C or a kill the folder stays, so that --resume finds it. If the block fails before `begun()` is true, the
    lock file and those of the folders `made` that are empty are removed, the first one first. busy: see `locked`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / LOCK, busy):
            try:
                yield
            except BaseException as error:
                if was_interrupted(error):
                    raise KeyboardInterrupt(RESUME) from None
                if not begun() and os.listdir(folder) in ([], [LOCK]):
                    (folder / LOCK).unlink(missing_ok=True)
                raise
    except BaseException:
        with suppress(OSError):  # of the first that is not empty
            for path in made:
                path.rmdir()
        raise


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which the operating system releases if the process dies.

    busy: what the process that holds the lock does, and what to do, for the ConfigError raised if another one holds it.
    """
    lock = file_lock(path)
    try:
        lock.acquire(timeout=LOOK_SECONDS)
    except Timeout:
        owner = path.read_text().strip() if path.is_file() else ""
        raise ConfigError(f"{path.parent}: {owner or 'another process'} {busy}") from None
    try:
        path.write_text(_this_process())
        yield
    finally:
        lock.release()


@contextmanager
def alone(workspace: Workspace) -> Iterator[None]:
    """Lock an experiment for the duration of a `with` block, unless this process has locked it.

    Raises ConfigError if another process has.
    """
    path = workspace.folder / LOCK
    if is_locked(path) and path.read_text() == _this_process():
        yield
        return
    with locked(path, "is running this search; wait until it ends"):
        yield


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}\n"


def is_experiment(folder: Path) -> bool:
    """Whether a folder holds an experiment, or is what a command left that was killed before its experiment began."""
    if (folder / "config.yaml").is_file() or (folder / LOCK).is_file():
        return True
    return folder.is_dir() and not os.listdir(folder)


def contents(storage: Path) -> str:
    """The names of the experiments in a storage root, latest first, for a message that does not find one."""
    folders = [path for path in storage.glob("*") if is_experiment(path)]
    folders.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return some([path.name for path in folders], "experiment")


def some(names: Sequence[str], noun: str) -> str:
    """The first names of a list in words, such as `it holds the experiments a, b and 3 more`."""
    if not names:
        return f"it holds no {noun}s"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"it holds the {noun}{'s' * (len(names) > 1)} {', '.join(names[:SHOWN])}{more}"


def latest(storage: Path, has: Callable[[Workspace], bool], like: str | None = None) -> Workspace | None:
    """The most recently begun experiment for which `has` is true; None if there is none.

    like: consider only experiments with this name, alone or followed by `-...`.
    """
    begun = [path.parent for path in storage.glob("*/config.yaml")]
    named = [p for p in begun if like is None or p.name == like or p.name.startswith(f"{like}-")]
    found = [w for w in (Workspace(storage, p.name) for p in named) if has(w)]
    return max(found, key=lambda w: (w.folder / "config.yaml").stat().st_mtime_ns, default=None)
