"""Storage in a bucket: commands work on a local folder, which is fetched from the bucket and stored there."""

from __future__ import annotations

import argparse
import logging
from functools import partial
from pathlib import Path

from raypipe import cli
from raypipe.common.errors import ConfigError
from raypipe.common.locks import Timeout
from raypipe.data.remote import in_threads
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace.bucket import lock, places, session
from raypipe.workspace.bucket.mirror import INDEX, OVERVIEW
from raypipe.workspace.bucket.places import local_storage
from raypipe.workspace.bucket.places import origin as origin
from raypipe.workspace.bucket.session import stored as stored

logger = logging.getLogger(__name__)


def storage_root(args: argparse.Namespace, *, writes: bool = True) -> Path:
    """The storage root of a command; of a URI, its local folder, with what tells how far each experiment is.

    writes: whether the command may write there; then what an earlier command could not store in the bucket is stored
    first. Raises ConfigError if the storage root is not a folder, or the bucket cannot be read.
    """
    place = cli.storage_place(args)
    return place if isinstance(place, Path) else open_storage(place, writes=writes)


def open_storage(uri: str, *, writes: bool = False) -> Path:
    """The local folder of a storage root in a bucket. writes, errors: see `storage_root`."""
    names = [name for name in RemoteFolder(uri).folders() if not name.startswith(".")]
    storage = local_storage(uri)
    if writes:
        _store_the_rest(storage)
    in_threads([partial(look, storage, name) for name in names])
    return storage


def find_experiment(uri: str) -> tuple[Path, str] | None:
    """The experiment at a URI: the local folder of its storage root, with what tells how far it is, and its name.

    None if there is none. Raises UserError if the bucket cannot be read.
    """
    root, _, name = uri.rstrip("/").rpartition("/")
    folder, _, index = INDEX.rpartition("/")
    if root.endswith(":/") or index not in ((RemoteFolder(root) / name / folder).files_or_none() or {}):
        return None
    storage = local_storage(root)
    look(storage, name)
    return storage, name


def look(storage: Path, name: str, *more: str) -> None:
    """Copy what tells how far an experiment is from the bucket; nothing for a folder, or while this machine runs it.

    more: further files, see `Mirror.look`.
    """
    if origin(storage) is None:
        return
    try:
        with session.alone(storage, name, 0.0):
            session.mirror_of(storage, name).look((*OVERVIEW, *more))
    except Timeout:
        return


def shown(storage: Path, path: Path | None = None) -> str:
    """What a storage root, or a path in it, is called: its URI in the bucket, or the path itself in a folder."""
    uri, path = origin(storage), path or storage
    return str(path) if uri is None else "/".join([uri, *path.relative_to(storage).parts])


def check_free(storage: Path, name: str, *, break_lock: bool) -> None:
    """Raise ConfigError at once if `stored` would, because another machine works on an experiment."""
    uri = origin(storage)
    if uri is not None and not break_lock:
        lock.Lock(RemoteFolder(uri) / name, places.machine(storage)).check_free()


def runner(storage: Path, name: str) -> str | None:
    """The process that holds the lock of an experiment in the bucket and lives; None if none does, or for a folder."""
    uri = origin(storage)
    owner = None if uri is None else lock.running(RemoteFolder(uri) / name)
    return None if owner is None else str(owner)


def _store_the_rest(storage: Path) -> None:
    for marker in places.home(storage).glob("*.unsaved"):
        try:
            with stored(storage, marker.stem):
                pass
        except ConfigError as error:  # another process goes on with it
            logger.warning("%s", error)
