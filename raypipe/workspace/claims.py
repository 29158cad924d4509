"""Which experiment a command works on: a free name, the latest one, and a lock that keeps others out."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from raypipe.config import ConfigError
from raypipe.workspace.layout import Workspace

LOCK = "search.lock"
"""Held by the command that runs a search; it says whose that is."""


def claim(storage: Path, name: str) -> Workspace:
    """The first free one of `name`, `name-2`, `name-3`, ...; its folder is made, so that nobody else gets it."""
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
    """Keep others from running this experiment at the same time; ConfigError if somebody does.

    The system lets go of the lock when its owner dies, however that happens. A folder in which nothing has
    begun is removed in the end.
    """
    workspace.folder.mkdir(parents=True, exist_ok=True)
    path = workspace.folder / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = path.read_text().strip() if path.is_file() else ""
        raise ConfigError(
            f"{workspace.folder}: {owner or 'another process'} is running this search; "
            "wait for it to end, or begin another with a --name of its own"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        if not (workspace.folder / "config.yaml").exists() and os.listdir(workspace.folder) in ([], [LOCK]):
            path.unlink(missing_ok=True)
            workspace.folder.rmdir()
        lock.release()


def latest(storage: Path, has: Callable[[Workspace], bool], like: str | None = None) -> Workspace | None:
    """The experiment begun last for which `has` holds (of the name `like`, or `like-N`)."""
    begun = [path.parent for path in storage.glob("*/config.yaml")]
    named = [p for p in begun if like is None or p.name == like or p.name.startswith(f"{like}-")]
    found = [w for w in (Workspace(storage, p.name) for p in named) if has(w)]
    return max(found, key=lambda w: (w.folder / "config.yaml").stat().st_mtime_ns, default=None)
