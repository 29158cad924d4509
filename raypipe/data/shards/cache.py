"""A bounded folder of copies that all processes of a node share."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from raypipe.common.errors import UserError

PART = ".part"
WAIT = 600.0
"""Seconds to wait for room that other copies in the making take up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """At most `max_bytes` of files in `folder` (`~` is each node's own); those used longest ago make room.

    A process that has a file open keeps it when it is removed: its space is free when the process lets go.
    """

    folder: str = "~/.cache/raypipe"
    max_bytes: int = 50 * 10**9

    @contextmanager
    def file(self, name: str, size: int, fill: Callable[[Path], None], source: str) -> Iterator[Path]:
        """The file of this name and size. If it is not there, one process calls `fill(temporary)`; others wait.

        It is not removed while the block runs. A name must stand for one content. source: what errors name.
        Raises ValueError for a file that can never fit, or a cache that cannot be written.
        """
        root = Path(self.folder).expanduser()
        path = root / name
        try:
            (root / "locks").mkdir(parents=True, exist_ok=True)
            held = _lock(path).acquire()
        except OSError as error:
            raise UserError(f"dataset.cache: {root} cannot be written ({error.strerror}); choose another") from None
        with held:
            if not (path.is_file() and path.stat().st_size == size):
                self._make(path, size, fill, source)
            os.utime(path)  # when it was last used
            yield path

    def _make(self, path: Path, size: int, fill: Callable[[Path], None], source: str) -> None:
        temporary = path.with_name(path.name + PART)
        try:
            self._reserve(temporary, size, source)
            fill(temporary)
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"dataset.cache: no space left in {path.parent} for {source} ({_gb(size)}); choose another folder,"
                " or lower dataset.cache_gb"
            ) from None
        finally:
            temporary.unlink(missing_ok=True)

    def _reserve(self, temporary: Path, size: int, source: str) -> None:
        """Make room, and take it by giving the temporary file its full size at once."""
        if size > self.max_bytes:
            raise UserError(
                f"dataset.cache_gb: must be at least {size / 1e9:.3g} to hold {source}, not"
                f" {self.max_bytes / 1e9:.3g}; raise it, or make smaller shards"
            )
        deadline = time.monotonic() + WAIT
        while True:
            with FileLock(str(temporary.parent / "locks" / "room.lock")):
                if self._make_room(temporary, size):
                    with temporary.open("wb") as file:
                        file.truncate(size)
                    return
            if time.monotonic() > deadline:
                raise UserError(f"dataset.cache_gb: other copies in the making left no room for {source}; raise it")
            time.sleep(0.2)

    def _make_room(self, temporary: Path, size: int) -> bool:
        """Remove what killed processes left, then what was used longest ago. Whether there is room now."""
        temporary.unlink(missing_ok=True)
        files = {path: path.stat() for path in temporary.parent.iterdir() if path.is_file()}
        used = sum(stat.st_size for stat in files.values())
        for path in sorted(files, key=lambda path: (path.suffix != PART, files[path].st_mtime_ns)):
            if path.suffix != PART and used + size <= self.max_bytes:
                break
            finished = path.with_name(path.name.removesuffix(PART))
            if finished.name + PART == temporary.name:
                continue
            try:
                with _lock(finished).acquire(timeout=0):
                    path.unlink(missing_ok=True)
            except Timeout:
                continue  # in use this moment
            log.info("%s: removed to make room", path)
            used -= files[path].st_size
        return used + size <= self.max_bytes


def _lock(path: Path) -> FileLock:
    return FileLock(str(path.parent / "locks" / f"{path.name}.lock"))


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
