"""Conversion from and to URIs: videos are copied to this machine, and finished shards are written from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.common.places import Place
from raypipe.data.conversion.preprocessing import RECORD
from raypipe.data.remote import fetch, local_folder, upload
from raypipe.data.shards.reference import MANIFEST
from raypipe.data.shards.storage import RemoteFolder
from raypipe.data.shards.writer import INDEX
from raypipe.data.splits import SPLITS


def source_folder(place: Place) -> Path:
    """The folder with the videos; those under a URI are copied first. Raises UserError, naming --data_dir."""
    if isinstance(place, Path):
        return place.absolute()
    try:
        return fetch(place)
    except UserError as error:
        raise UserError(f"--data_dir: {error}") from None


def target_folder(place: Place) -> Path:
    """The folder in which shards are made; for a URI, one of this machine, from which they are published."""
    return place.absolute() if isinstance(place, Path) else local_folder(place, "converted")


def check_target(uri: str) -> None:
    """Raise UserError, naming --out_dir, if a URI cannot be reached, or holds shards that another machine wrote."""
    for split in SPLITS:
        try:
            there = (RemoteFolder(uri) / split).files_or_none()
        except UserError as error:
            raise UserError(f"--out_dir: {error}") from None
        if there and not (target_folder(uri) / split / RECORD).is_file():
            raise UserError(
                f"--out_dir: {uri}/{split} already holds files that this machine did not write; delete them, or choose "
                "another --out_dir"
            )


def publish(made: Path, uri: str, splits: Sequence[str]) -> None:
    """Write the finished splits to a URI, the file that makes a split complete last. Raises UserError on failure."""
    for split in splits:
        names = sorted(path.name for path in (made / split).iterdir() if path.is_file())
        names.sort(key=lambda name: (name in (INDEX, MANIFEST), not name.endswith(".hdf5")))
        try:
            upload(made / split, f"{uri}/{split}", names)
        except UserError as error:
            raise UserError(f"--out_dir: {error}; run the same command again to go on") from None
