"""The local folder of a storage root in a bucket: where it is, and what it is the folder of."""

from __future__ import annotations

import uuid
from pathlib import Path

from raypipe.common.files import write_atomic
from raypipe.data.remote import local_folder


def local_storage(uri: str) -> Path:
    """The local folder of a storage root in a bucket, which is made if needed."""
    storage = local_folder(uri, "storage")
    storage.mkdir(parents=True, exist_ok=True)
    if origin(storage) != uri:
        write_atomic(home(storage) / "uri", uri)
    return storage


def home(storage: Path) -> Path:
    """Folder, beside the local folder of a storage root, for what is known of it."""
    return storage.with_name(f"{storage.name}.raypipe")


def origin(storage: Path) -> str | None:
    """The URI of which a folder is the local folder; None for a folder that is a storage root itself."""
    path = home(storage) / "uri"
    return path.read_text() if path.is_file() else None


def machine(storage: Path) -> str:
    """A random name of this machine, or rather of its local folder."""
    path = home(storage) / "machine"
    if not path.is_file():
        write_atomic(path, uuid.uuid4().hex)
    return path.read_text()
