"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`: renamed to `path` at the end, removed on any exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place if the block succeeds, and vanishes if it does not.

    An older folder first moves aside: a crash between the two renames leaves it where `standing` looks.
    """
    target = path.absolute()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        old = _aside(target)
        if old.exists() and not target.exists():
            os.replace(old, target)
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def standing(path: Path) -> Path:
    """The folder, or the older one that a crash of `atomic_folder` left aside."""
    place = path.absolute()
    return _aside(place) if not place.exists() and _aside(place).is_dir() else place


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def disk_is_full(error: BaseException, place: Path) -> bool:
    """Whether an error, or what caused it, says that the disk which holds `place` is full, or a quota used up.

    Writers in C and Rust raise errors of their own: those of a full disk name the system's error, or give none
    but leave no room behind.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in str(cause) for text in ("No space left on device", "os error 28", "Disk quota exceeded")):
            return True
        cause = cause.__cause__ or cause.__context__
    there = next(folder for folder in (place, *place.parents) if folder.exists())
    return isinstance(error, OSError | RuntimeError) and shutil.disk_usage(there).free < 2**16


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")
