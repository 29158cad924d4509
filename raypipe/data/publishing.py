"""Writing the published layout, for code that reads nothing else.

A shard is one HDF5 file of datasets `<i>/<frame>`, uint8 [H, W, 3] with lzf compression, and `len/<i>`, the
number of frames; clips and frames are counted from 0 in each file. `manifest.parquet` beside the shards says
what each clip is called and was made from; packed folders have `index.parquet`, which is how they are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.common.files import atomic_path
from raypipe.data.packing import Clip

MANIFEST = "manifest.parquet"
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("source", pa.string()),
        ("frames", pa.int64()),
        ("shard", pa.string()),
        ("group", pa.int64()),
    ]
)


def write_published(path: Path, clips: Sequence[Clip]) -> None:
    """Write one shard of uint8 clips [T, H, W, 3], whole or not at all; equal clips give equal bytes."""
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        lengths = file.create_group("len")
        for i, clip in enumerate(clips):
            group = file.create_group(str(i))
            for t, frame in enumerate(clip.frames):
                group.create_dataset(str(t), data=frame, dtype=np.uint8, compression="lzf", track_times=False)
            lengths.create_dataset(str(i), data=len(clip.frames), track_times=False)


def write_manifest(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write what the shards cannot hold; its presence says that the folder is complete. rows: as `SCHEMA`."""
    with atomic_path(folder / MANIFEST) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), temporary)
