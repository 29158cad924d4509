"""`index.parquet`, the manifest of a folder of packed shards, with one row per clip.

It is written last, so it marks the folder as complete. Its footer holds the shape and dtype of a frame, and where the
frames are in each shard; a reader needs no other file until it reads a clip.
"""

from __future__ import annotations

import io
import json
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raypipe.common.errors import UserError, first_line
from raypipe.data.shards.integrity import Seal, check_bytes, mark, seal_bytes

INDEX = "index.parquet"
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("source", pa.string()),
        ("frames", pa.int64()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("crc32", pa.uint32()),
    ]
)


@dataclass(frozen=True)
class Index:
    """The content of a manifest.

    names, sources, lengths, shards, offsets, crcs: the columns of `SCHEMA`, one value per clip; lengths and offsets in
    frames. seals: the seal of each shard by name, in the order of the rows. frame_shape, dtype: of one frame. key:
    identifies what produced the content, empty for plain videos.
    """

    names: list[str]
    sources: list[str]
    lengths: NDArray[np.int64]
    shards: list[str]
    offsets: NDArray[np.int64]
    crcs: NDArray[np.uint32]
    seals: dict[str, Seal]
    frame_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    key: str


def index_to_bytes(index: Index) -> bytes:
    """Serialize a manifest. Equal indices give equal bytes."""
    table = pa.table(
        [index.names, index.sources, index.lengths, index.shards, index.offsets, index.crcs], schema=SCHEMA
    )
    about = {
        "key": index.key,
        "dtype": index.dtype.str,
        "frame_shape": list(index.frame_shape),
        "shards": {name: astuple(seal) for name, seal in index.seals.items()},
    }
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, store_schema=False, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"raypipe": json.dumps(about)})
        writer.add_key_value_metadata({"raypipe.crc32": mark()})
    return seal_bytes(buffer.getvalue())


def index_from_bytes(content: bytes) -> Index:
    """Inverse of `index_to_bytes`. Raises UserError for any other or damaged bytes."""
    check_bytes(content)
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        table = file.read().cast(SCHEMA)
        about = json.loads(file.metadata.metadata[b"raypipe"])
        columns = table.to_pydict()
        return Index(
            names=columns["clip"],
            sources=columns["source"],
            lengths=table["frames"].to_numpy(),
            shards=columns["shard"],
            offsets=table["offset"].to_numpy(),
            crcs=table["crc32"].to_numpy(),
            seals={name: Seal(*values) for name, values in about["shards"].items()},
            frame_shape=tuple(about["frame_shape"]),
            dtype=np.dtype(about["dtype"]),
            key=about["key"],
        )
    except (pa.ArrowException, OSError, KeyError, TypeError) as error:
        raise UserError(first_line(error)) from None
