"""Whole folders of a remote storage: copied to this machine for programs that need files, and written back.

Shards need none of this: they are read through the cache of `raypipe.data.shards`, one file at a time.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from raypipe.common.errors import UserError
from raypipe.common.files import atomic_path
from raypipe.common.locks import file_lock
from raypipe.data.shards.cache import Cache
from raypipe.data.shards.storage import RemoteFile, RemoteFolder

TRANSFERS = 8
"""Number of files copied at a time."""

logger = logging.getLogger(__name__)


def local_folder(uri: str, purpose: str) -> Path:
    """Folder of this machine for the files of a URI, in the folder of the default cache; it has the same name."""
    name = uri.partition("?")[0].rpartition("/")[2] or "files"
    digest = hashlib.sha256(uri.encode()).hexdigest()[:16]
    return Path(Cache().folder).expanduser() / purpose / digest / name


def fetch(uri: str) -> Path:
    """Local copy of a remote file, or of a remote folder with all below it; what has not changed is not copied again.

    Raises UserError if there is no such file or folder, or it cannot be copied.
    """
    file = remote_file(uri)
    if file is not None:
        return _copy_all({file.name: file}, local_folder(file.folder.uri, "files")) / file.name
    files = RemoteFolder(uri).files(below=True)
    if not files:
        raise UserError(f"{uri}: no such file, and no files below it")
    return _copy_all(files, local_folder(uri, "copies"), complete=True)


def fetch_file(uri: str, name: str) -> Path | None:
    """Local copy of a file of a remote folder; None if there is no such file."""
    file = (RemoteFolder(uri) / name).uri
    return fetch(file) if remote_file(file) else None


def remote_file(uri: str) -> RemoteFile | None:
    """The remote file with this URI; None if there is none, or a folder."""
    place = RemoteFolder(uri)
    if "/" not in uri.partition("://")[2]:
        return None  # a bucket
    folder, name = RemoteFolder(place.parent), uri.partition("?")[0].rpartition("/")[2]
    size, mtime = folder.retry(uri, lambda: folder.stat(name))
    if size < 0:
        place.files_or_none()  # which tells a missing bucket from a missing file
        return None
    return RemoteFile(folder, name, size, mtime)


def _copy_all(files: Mapping[str, RemoteFile], home: Path, complete: bool = False) -> Path:
    """Copy files to a folder, with their times. complete: these are all files, so that others are deleted there."""
    for name in files:
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise UserError(f"{files[name].folder}: a file in it is named {name!r}; rename it")
    home.mkdir(parents=True, exist_ok=True)
    with file_lock(str(home) + ".lock"):
        left = [(home / name, file) for name, file in files.items() if not _is_copy(home / name, file)]
        if left:
            size = sum(file.size for _, file in left)
            logger.info("copying %d files (%.3g MB) to %s", len(left), size / 1e6, home)
        in_threads([partial(_copy, path, file) for path, file in left])
        if complete:
            kept = {home / name for name in files}
            for path in home.rglob("*"):
                if path.is_file() and path not in kept:
                    path.unlink()
    return home


def _is_copy(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and (path.stat().st_size, path.stat().st_mtime_ns) == (file.size, file.mtime)


def _copy(path: Path, file: RemoteFile) -> None:
    try:
        with atomic_path(path) as temporary:
            temporary.touch()
            file.copy(temporary)
            os.utime(temporary, ns=(file.mtime, file.mtime))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{path.parent}: no space left for a copy of {file}; make room there") from None


def upload(folder: Path, uri: str, names: Sequence[str]) -> None:
    """Write files of a local folder to a remote one; `names` are relative paths, and the last one is written last.

    Files that are there with the same size, and not older, are skipped: so an interrupted upload continues. Raises
    UserError if a file cannot be written.
    """
    target = RemoteFolder(uri)
    there = target.files_or_none() or {}

    def is_there(name: str) -> bool:
        stat, file = (folder / name).stat(), there.get(name)
        return file is not None and file.size == stat.st_size and file.mtime >= stat.st_mtime_ns

    left = [name for name in names if not is_there(name)]
    if left:
        size = sum((folder / name).stat().st_size for name in left)
        logger.info("%s: writing %d files (%.3g MB)", uri, len(left), size / 1e6)
    in_threads([partial(target.write, name, folder / name) for name in left[:-1]])
    for name in left[-1:]:
        target.write(name, folder / name)


def in_threads(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls, several at a time; after an exception, none is begun any more."""
    pool = ThreadPoolExecutor(TRANSFERS)
    try:
        for future in [pool.submit(call) for call in calls]:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
