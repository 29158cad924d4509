"""Cache of remote files: a folder of bounded size, shared by all processes of a node."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.common.locks import FileLock, Timeout, file_lock

PART = ".part"
"""Suffix of files that are being copied."""
WAIT = 600.0
"""Seconds to wait for space while other files are being copied."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """A folder with at most `max_bytes` of files; the least recently used files are evicted.

    `~` in `folder` is expanded on each node. A process that has an evicted file open can still read it; the disk space
    is freed when the file is closed.
    """

    folder: str = "~/.cache/raypipe"
    max_bytes: int = 50 * 10**9

    @contextmanager
    def file(self, name: str, size: int, fill: Callable[[Path], None], source: str) -> Iterator[Path]:
        """Path of the cached file with this name and size; it is not evicted inside the `with` block.

        If the file is missing, one process calls `fill(temporary)` to write it, and the others wait. A name must always
        stand for the same content. source: name of the file in error messages. Raises UserError if the file is larger
        than the cache, or the cache cannot be written.
        """
        root = Path(self.folder).expanduser()
        path = root / name
        try:
            (root / "locks").mkdir(parents=True, exist_ok=True)
            held = _lock(path).acquire()
        except OSError as error:
            raise UserError(
                f"dataset.cache: {root} cannot be written ({error.strerror}); choose another folder"
            ) from None
        with held:
            if not (path.is_file() and path.stat().st_size == size):
                self._make(path, size, fill, source)
            os.utime(path)  # mark as used now, for the eviction order
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
        """Evict files and reserve the space by giving the temporary file its full size at once."""
        if size > self.max_bytes:
            raise UserError(
                f"dataset.cache_gb: must be at least {size / 1e9:.3g} to hold {source}, not"
                f" {self.max_bytes / 1e9:.3g}; raise it or make smaller shards"
            )
        deadline = time.monotonic() + WAIT
        while True:
            with file_lock(str(temporary.parent / "locks" / "room.lock")):
                if self._make_room(temporary, size):
                    with temporary.open("wb") as file:
                        file.truncate(size)
                    return
            if time.monotonic() > deadline:
                raise UserError(f"dataset.cache_gb: no space for {source}, as other files are being copied; raise it")
            time.sleep(0.2)

    def _make_room(self, temporary: Path, size: int) -> bool:
        """Delete leftovers of killed processes, then the least recently used files. True if `size` bytes now fit."""
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
                continue  # in use
            log.info("%s: evicted from the cache", path)
            used -= files[path].st_size
        return used + size <= self.max_bytes


def _lock(path: Path) -> FileLock:
    return file_lock(str(path.parent / "locks" / f"{path.name}.lock"))


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
