"""Storage of shards: a local folder, read in place, or a URI, whose files are copied to a local cache on first use.

The name of a copy depends on the URI, size and modification time of the original, so that a changed dataset is never
mixed with copies of the old one.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raypipe.common.errors import UserError, first_line
from raypipe.common.places import is_uri
from raypipe.data.shards.cache import Cache
from raypipe.data.shards.connection import (
    OPENING,
    PATIENCE,
    MissingFolderError,
    connect,
    explain,
)

CHUNK = 1 << 20
"""Bytes read at a time."""
TRANSFER = "raypipe-transfer"
"""Name of the threads that list and read remote folders."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalFile:
    """A local file, read in place."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @contextmanager
    def staged(self) -> Iterator[Path]:
        yield self.path


class RemoteFolder:
    """A remote folder, given as a URI for pyarrow.fs.

    stall: seconds without new data after which a transfer fails. attempts: number of times that a failing operation is
    tried. wait: seconds before the second attempt, doubled before each further one. filesystem: overrides the
    filesystem that pyarrow derives from the URI.
    """

    def __init__(
        self,
        uri: str,
        cache: Cache | None = None,
        *,
        stall: float = 60.0,
        attempts: int = 3,
        wait: float = 1.0,
        filesystem: fs.FileSystem | None = None,
    ) -> None:
        self.uri, self.cache = uri.rstrip("/"), cache or Cache()
        self.stall, self.attempts, self.wait = stall, attempts, wait
        self._given = filesystem
        self._resolved: tuple[int, fs.FileSystem, str] | None = None
        self._answered = False

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> RemoteFolder:
        base, mark, query = self.uri.partition("?")
        return RemoteFolder(
            f"{base}/{name}{mark}{query}",
            self.cache,
            stall=self.stall,
            attempts=self.attempts,
            wait=self.wait,
            filesystem=self._given,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resolved": None}

    @property
    def parent(self) -> str:
        base, mark, query = self.uri.partition("?")
        return f"{base.rpartition('/')[0]}{mark}{query}"

    def files(self, *, below: bool = False) -> dict[str, RemoteFile]:
        """The files in this folder by name, or with `below` also those in all subfolders, by relative path.

        Raises UserError if the folder cannot be listed.
        """
        found = self.retry(self.uri, lambda: next(_pump(lambda: self._list(below), self.stall)))
        return {name: RemoteFile(self, name, info.size, info.mtime_ns or 0) for name, info in found.items()}

    def files_or_none(self) -> dict[str, RemoteFile] | None:
        """`files`; None if the folder does not exist."""
        try:
            return self.files()
        except MissingFolderError:
            return None

    def _list(self, below: bool) -> Iterator[dict[str, fs.FileInfo]]:
        system, path = self._open()
        infos = system.get_file_info(fs.FileSelector(path, recursive=below))
        files = [info for info in infos if info.type == fs.FileType.File]
        yield {info.path.removeprefix(f"{path}/") if below else info.base_name: info for info in files}

    def folders(self) -> list[str]:
        """Names of the subfolders; none if this folder does not exist. Raises UserError if they cannot be listed."""

        def look() -> Iterator[list[str]]:
            system, path = self._open()
            infos = system.get_file_info(fs.FileSelector(path))
            yield [info.base_name for info in infos if info.type == fs.FileType.Directory]

        try:
            return list(self.retry(self.uri, lambda: next(_pump(look, self.stall))))
        except MissingFolderError:
            return []

    def read(self, name: str) -> Iterator[bytes]:
        """The bytes of a file, in pieces. Raises OSError if it cannot be read, TimeoutError if the transfer stalls."""

        def pieces() -> Iterator[bytes]:
            system, path = self._open()
            with system.open_input_stream(f"{path}/{name}") as stream:
                while piece := stream.read(CHUNK):
                    yield piece

        return _pump(pieces, self.stall)

    def write(self, name: str, source: Path | bytes) -> None:
        """Write a local file, or bytes, to this folder. Raises UserError if that fails.

        After an interruption, a part of the file may stand there: write last what names the others.
        """

        def copy() -> None:
            system, path = self._open()
            with ExitStack() as stack:
                file = BytesIO(source) if isinstance(source, bytes) else stack.enter_context(source.open("rb"))
                stream = stack.enter_context(system.open_output_stream(f"{path}/{name}"))
                shutil.copyfileobj(file, stream, CHUNK)

        self.retry(f"{self}/{name}", copy)

    def delete(self, name: str) -> None:
        """Delete a file of this folder if it exists. Raises UserError if that fails."""

        def remove() -> None:
            system, path = self._open()
            with suppress(FileNotFoundError):
                system.delete_file(f"{path}/{name}")

        self.retry(f"{self}/{name}", remove)

    def stat(self, name: str) -> tuple[int, int]:
        """Current size and modification time in ns of a file; (-1, 0) if it does not exist."""

        def look() -> Iterator[fs.FileInfo]:
            system, path = self._open()
            yield system.get_file_info(f"{path}/{name}")

        info = next(_pump(look, self.stall))
        return (info.size or 0, info.mtime_ns or 0) if info.type == fs.FileType.File else (-1, 0)

    def retry(self, uri: str, call: Callable[[], Any]) -> Any:
        """Retry `call` with growing waits while it raises OSError; UserError with the URI after the last attempt.

        A storage that has never answered is given up sooner, so that a mistaken address shows within seconds.
        """
        begin = time.monotonic()
        for attempt in range(1, self.attempts + 1):
            try:
                result = call()
                self._answered = True
                return result
            except pa.ArrowException as error:
                raise UserError(f"{uri}: cannot be opened ({first_line(error)})") from None
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if (known := explain(uri, error)) is not None:
                    self._answered = True
                    raise known from None
                silent = not self._answered and time.monotonic() - begin > PATIENCE
                if attempt == self.attempts or silent:
                    tries = f"{attempt} attempt{'s' * (attempt > 1)}"
                    raise UserError(f"{uri}: cannot be read after {tries} ({first_line(error)})") from None
                log.warning("%s: attempt %d of %d failed (%s)", uri, attempt, self.attempts, first_line(error))
                time.sleep(self.wait * 2 ** (attempt - 1))
        raise AssertionError("attempts must be at least 1")

    def _open(self) -> tuple[fs.FileSystem, str]:
        """The filesystem and path, opened once per process: threads and connections do not survive a fork."""
        if self._resolved is None or self._resolved[0] != os.getpid():
            if self._given is None:
                system, path = next(_pump(lambda: iter([connect(self.uri)]), OPENING))
            else:
                system, path = self._given, self.uri.partition("://")[2]
            self._resolved = (os.getpid(), system, path)
        return self._resolved[1:]


@dataclass(frozen=True)
class RemoteFile:
    """A remote file; size and mtime (in ns) are those at the time when its folder was listed."""

    folder: RemoteFolder
    name: str
    size: int
    mtime: int

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """Path of the local copy, downloaded if missing. Open it inside the block; later it may be evicted.

        Raises UserError, naming the URI, if the file cannot be copied completely.
        """
        key = hashlib.sha256(f"{self} {self.size} {self.mtime}".encode()).hexdigest()[:24]
        with self.folder.cache.file(f"{key}-{self.name}", self.size, self._fetch, str(self)) as path:
            yield path

    def _fetch(self, path: Path) -> None:
        log.info("%s: copying to %s (%.3g MB)", self, path.parent, self.size / 1e6)
        self.copy(path)

    def copy(self, path: Path) -> None:
        """Copy it to an existing file. Raises UserError, naming the URI, if it cannot be copied completely."""
        self.folder.retry(str(self), lambda: self._copy(path))
        # If the file was replaced during the copy, the copy may mix old and new content.
        if self.folder.retry(str(self), lambda: self.folder.stat(self.name)) != (self.size, self.mtime):
            raise UserError(f"{self}: changed while it was read; run the command again")

    def _copy(self, path: Path) -> None:
        count = 0
        with path.open("r+b") as file:
            for piece in self.folder.read(self.name):
                count += len(piece)
                if count > self.size:  # the cache has reserved space only for `size` bytes
                    break
                file.write(piece)
            if count != self.size:
                raise OSError(f"received {count} bytes, but the listing says {self.size}")
            file.flush()
            os.fsync(file.fileno())


File = LocalFile | RemoteFile
Folder = Path | RemoteFolder


def to_folder(place: str | Path | RemoteFolder) -> Folder:
    """Convert a URI to a RemoteFolder with the default cache, and any other string to a Path."""
    if isinstance(place, str):
        return RemoteFolder(place) if is_uri(place) else Path(place)
    return place


def list_files(folder: Folder) -> dict[str, File]:
    """The files in a folder by name, empty if a local folder does not exist. Raises UserError if it cannot be read."""
    if isinstance(folder, RemoteFolder):
        return dict(folder.files())
    try:
        return {name: LocalFile(folder / name) for name in os.listdir(folder)}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from None


def _pump(make: Callable[[], Iterator[Any]], stall: float) -> Iterator[Any]:
    """Run the iterator `make()` in a thread and yield its items; TimeoutError after `stall` seconds without one."""
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=2)
    left = threading.Event()

    def put(kind: str, item: Any) -> None:
        while not left.is_set():
            try:
                return items.put((kind, item), timeout=0.2)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in make():
                put("item", item)
                if left.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    # A call that hangs in the operating system cannot be stopped; a daemon thread does not keep the process alive.
    threading.Thread(target=work, name=TRANSFER, daemon=True).start()
    try:
        while True:
            try:
                kind, item = items.get(timeout=stall)
            except queue.Empty:
                raise TimeoutError(f"received no data for {stall:g} seconds") from None
            if kind == "error":
                raise item
            if kind == "end":
                return
            yield item
    finally:
        left.set()
