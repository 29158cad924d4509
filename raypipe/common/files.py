"""Atomic writes of files and folders, and detection of a full disk."""

from __future__ import annotations

import errno
import hashlib
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
    """Yield a temporary path next to `path`; rename it to `path` on success, remove it on any exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `path`; replace `path` with it on success, remove it on any exception.

    An existing folder is first renamed to a backup. If the process dies between the two renames, `standing` finds the
    backup.
    """
    target = path.absolute()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        old = _backup(target)
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
    """The path of a folder, or of its backup if `atomic_folder` was interrupted while replacing the folder."""
    place = path.absolute()
    return _backup(place) if not place.exists() and _backup(place).is_dir() else place


def _backup(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def disk_is_full(error: BaseException, place: Path) -> bool:
    """Whether an error was caused by a full disk or an exceeded quota. place: the path that was being written.

    Libraries written in C or Rust raise their own exceptions. Some include the text of the system error; for the
    others, an OSError or RuntimeError counts if less than 64 KiB are free on the disk.
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
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
