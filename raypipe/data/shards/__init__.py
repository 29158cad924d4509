"""Read clips from shards of either layout, packed or reference: `open_shards(folder)`."""

from __future__ import annotations

from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.data.shards.index import INDEX
from raypipe.data.shards.integrity import is_sealed
from raypipe.data.shards.packed import PackedShards
from raypipe.data.shards.reader import Shards
from raypipe.data.shards.reference import ReferenceShards
from raypipe.data.shards.storage import Folder, RemoteFolder, list_files, to_folder
from raypipe.data.shards.writer import ShardWriter

__all__ = ["PackedShards", "ReferenceShards", "RemoteFolder", "ShardWriter", "Shards", "open_shards"]


def open_shards(folder: str | Path | RemoteFolder) -> Shards:
    """Open a folder of shards; the layout, packed or reference, is detected.

    folder: a path; a URI for pyarrow.fs (s3://bucket/set/train), whose files are copied to the default cache; or a
    RemoteFolder, which has its own cache. Raises UserError if there are no shards, or if they are incomplete or
    damaged.
    """
    place: Folder = to_folder(folder)
    listing = list_files(place)
    shards = {name: file for name, file in sorted(listing.items()) if is_shard(name)}
    if not shards and INDEX not in listing:
        raise UserError(
            f"{place}: no shards in this folder; create them with python -m raypipe.convert_to_h5"
            f" --data_dir VIDEOS --out_dir {place.parent}"
        )
    if INDEX in listing:
        return PackedShards(place, listing)
    first = next(iter(shards.values()))
    try:
        with first.staged() as path:
            packed = is_sealed(path)
    except OSError as error:
        raise UserError(f"{first}: cannot be read ({error.strerror or error})") from None
    return PackedShards(place, listing) if packed else ReferenceShards(place, shards)


def is_shard(name: str) -> bool:
    return name.startswith("shard_") and name.endswith(".hdf5")
