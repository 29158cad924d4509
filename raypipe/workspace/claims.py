"""Choose the experiment that a command works on, and lock it against other processes."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.common.locks import Timeout, file_lock
from raypipe.config import ConfigError
from raypipe.workspace.layout import Workspace

LOCK = "search.lock"
"""Lock file held by the process that runs a search; it contains the process ID and the host."""


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


@contextmanager
def hold(workspace: Workspace) -> Iterator[None]:
    """Lock an experiment for the duration of a `with` block. Raises ConfigError if another process has locked it.

    The operating system releases the lock if the process dies. If no experiment has begun in the folder by the end of
    the block, the folder is removed.
    """
    workspace.folder.mkdir(parents=True, exist_ok=True)
    path = workspace.folder / LOCK
    lock = file_lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = path.read_text().strip() if path.is_file() else ""
        raise ConfigError(
            f"{workspace.folder}: {owner or 'another process'} is running this search; "
            "wait until it ends, or start another search with a different --name"
        ) from None
    except UserError:  # the file system has no locks
        if not os.listdir(workspace.folder):
            workspace.folder.rmdir()
        raise
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        if not (workspace.folder / "config.yaml").exists() and os.listdir(workspace.folder) in ([], [LOCK]):
            path.unlink(missing_ok=True)
            workspace.folder.rmdir()
        lock.release()


def latest(storage: Path, has: Callable[[Workspace], bool], like: str | None = None) -> Workspace | None:
    """The most recently begun experiment for which `has` is true; None if there is none.

    like: consider only experiments with this name, alone or followed by `-...`.
    """
    begun = [path.parent for path in storage.glob("*/config.yaml")]
    named = [p for p in begun if like is None or p.name == like or p.name.startswith(f"{like}-")]
    found = [w for w in (Workspace(storage, p.name) for p in named) if has(w)]
    return max(found, key=lambda w: (w.folder / "config.yaml").stat().st_mtime_ns, default=None)
