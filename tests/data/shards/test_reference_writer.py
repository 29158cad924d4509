"""The reference layout: as its readers want it."""

import h5py
import numpy as np
import pyarrow.parquet as pq

from raypipe.data.shards import ReferenceShards, open_shards
from raypipe.data.shards.reference import write_manifest, write_reference
from raypipe.data.shards.writer import Clip
from tests.videotools import noise


def test_datasets_are_where_the_reference_code_looks(tmp_path):
    clips = [Clip("a", noise(0, 3)), Clip("b/c", noise(1, 12))]
    write_reference(tmp_path / "shard_0001.hdf5", clips)
    write_reference(tmp_path / "again.hdf5", clips)
    assert (tmp_path / "again.hdf5").read_bytes() == (tmp_path / "shard_0001.hdf5").read_bytes()
    with h5py.File(tmp_path / "shard_0001.hdf5") as file:
        assert sorted(file) == ["0", "1", "len"]
        assert [file["len"][str(i)][()] for i in range(2)] == [3, 12]
        for i, clip in enumerate(clips):
            assert sorted(file[str(i)], key=int) == [str(t) for t in range(len(clip.frames))]
            for t, frame in enumerate(clip.frames):
                dataset = file[str(i)][str(t)]
                assert (dataset.compression, dataset.dtype) == ("lzf", np.uint8)
                np.testing.assert_array_equal(dataset[()], frame)
    (tmp_path / "again.hdf5").unlink()
    rows = [
        {"clip": c.name, "source": "", "frames": len(c.frames), "shard": "shard_0001.hdf5", "group": g}
        for g, c in enumerate(clips)
    ]
    write_manifest(tmp_path, rows)
    assert pq.read_table(tmp_path / "manifest.parquet").to_pylist() == rows
    shards = open_shards(tmp_path)
    assert isinstance(shards, ReferenceShards)
    assert shards.lengths.tolist() == [3, 12]
