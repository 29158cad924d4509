"""Clips of tar files, arrays and tables: what is packed is what they hold, and nothing in them is run."""

import sys

import numpy as np
import pytest

from raypipe import convert_to_h5
from raypipe.data.conversion.find import find_clips
from raypipe.data.conversion.splits import Division, find_splits
from raypipe.data.shards import open_shards
from raypipe.forecast.clip import read_clip
from raypipe.forecast.manifest import Manifest
from tests.data.odd_holders import CLIPS, HOLDER_CASES, LUMA, save, savez, store, table, tar, video

MODEL = Manifest("f", 1.0, 1.0, 1, 2, 64, 1, "x")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")


def convert(root, out, *flags):
    return convert_to_h5.main(["--data_dir", str(root), "--out_dir", str(out), "--num-workers", "1", *flags])


@pytest.mark.parametrize(
    ("write", "array"),
    [
        (lambda path: save(path / "b.npy", CLIPS), CLIPS),
        (lambda path: save(path / "b.npy", (LUMA / 255).astype("f4")), np.repeat(LUMA[..., None], 3, -1)),
        (lambda path: savez(path / "b.npz", np.savez_compressed, x=CLIPS[::-1]), CLIPS[::-1]),
        (lambda path: store(path / "b.zarr", LUMA[..., None]), np.repeat(LUMA[..., None], 3, -1)),
    ],
)
def test_arrays_keep_every_value(tmp_path, write, array):
    write(tmp_path / "in/train")
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    shards = open_shards(tmp_path / "out/train")
    np.testing.assert_array_equal([shards.clip(i) for i in range(3)], array)
    assert shards.sources[2].startswith("train/b.")


def test_a_holder_is_the_input_of_generate(tmp_path):
    path = savez(tmp_path / "b.npz", x=CLIPS)
    np.testing.assert_array_equal(read_clip(path, MODEL, None, 2).frames, CLIPS[2])
    first = read_clip(path, MODEL, None)
    assert first.name == "b.npz_x_0" and "has 3 clips, of which the first is taken" in first.notes[-1]
    with pytest.raises(ValueError, match="--clip: must be from 0 to 2"):
        read_clip(path, MODEL, None, 3)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("objects", "zarr by pickle"):
        HOLDER_CASES[name].make(tmp_path / name)
        assert convert(tmp_path / name, tmp_path / f"out-{name}") == 1
    assert not (tmp_path / "unpickled").exists()


def test_without_zarr_a_line_names_the_extra(tmp_path, monkeypatch, capsys):
    store(tmp_path / "in/train/b.zarr", CLIPS)
    save(tmp_path / "in/train/b.npy", CLIPS)
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert convert(tmp_path / "in", tmp_path / "out") == 1
    assert (
        "b.zarr: reading a zarr store needs the package zarr, which is not installed; pip install 'raypipe[zarr]'"
        in (capsys.readouterr().err)
    )
    assert len(open_shards(tmp_path / "out/train")) == 3


def test_videos_of_tars_and_tables_have_a_rate(tmp_path):
    tar(tmp_path / "in/train/b.tar", {"a.mp4": video()})
    table(tmp_path / "in/train/b.parquet", [{"bytes": video(), "path": "c.mp4"}])
    assert convert(tmp_path / "in", tmp_path / "out", "--fps", "20") == 0
    shards = open_shards(tmp_path / "out/train")
    assert dict(zip(shards.names, shards.lengths.tolist(), strict=True)) == {"b.tar/a": 32, "b.parquet/c": 32}
    np.testing.assert_array_equal(shards.clip(0), shards.clip(1))


def test_it_resumes_and_notices_what_changed(tmp_path, capsys):
    path = tar(tmp_path / "in/train/b.tar", {f"{i}.mp4": video(n=4 + i) for i in range(20)})
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    shards = sorted((tmp_path / "out/train").glob("shard_*.hdf5"))
    before = {shard.name: shard.stat().st_mtime_ns for shard in shards}
    shards[3].unlink()
    (tmp_path / "out/train/index.parquet").unlink()
    assert convert(tmp_path / "in", tmp_path / "out") == 0
    after = {shard.name: shard.stat().st_mtime_ns for shard in shards}
    assert [name for name in before if before[name] != after[name]] == [shards[3].name]
    assert open_shards(tmp_path / "out/train").lengths.tolist() == list(range(4, 24))
    tar(path, {"0.mp4": video()})
    capsys.readouterr()
    assert convert(tmp_path / "in", tmp_path / "out") == 2
    assert "its sources have changed" in capsys.readouterr().err


def test_clips_of_one_tar_are_divided(tmp_path):
    tar(tmp_path / "in/b.tar", {f"p{i}_{j}.mp4": video(n=2) for i in range(5) for j in "ab"})
    division = Division(None, (0.6, 0.2, 0.2), r"p(\d)")
    parts = {split.name: [s.name for s in split.sources] for split in find_splits(tmp_path / "in", division).splits}
    assert sorted(map(len, parts.values())) == [2, 2, 6]
    for names in parts.values():
        assert {name[:-1] for name in names if name.endswith("a")} == {
            name[:-1] for name in names if name.endswith("b")
        }


def test_files_are_named_after_their_splits(tmp_path, capsys):
    rows = [{"bytes": video(n=3), "path": f"{i}.mp4"} for i in range(2)]
    table(tmp_path / "in/data/train-00000-of-00002.parquet", rows)
    table(tmp_path / "in/data/train-00001-of-00002.parquet", rows)
    tar(tmp_path / "in/validation_000.tar", {"a.mp4": video(n=4)})
    save(tmp_path / "in/test.npy", CLIPS)
    save(tmp_path / "in/more.npy", CLIPS)
    assert convert(tmp_path / "in", tmp_path / "out") == 1
    lengths = {split: open_shards(tmp_path / "out" / split).lengths.tolist() for split in ("train", "val", "test")}
    assert lengths == {"train": [3] * 4, "val": [4], "test": [6] * 3}
    err = capsys.readouterr().err
    assert err.count("more.npy: its name does not begin with train, val or test, left out") == 1
    assert convert(tmp_path / "in", tmp_path / "out2", "--split", "0.8,0.1,0.1") == 0
    assert sum(len(open_shards(tmp_path / "out2" / split)) for split in lengths) == 11


def test_what_lies_beside_the_splits_is_named(tmp_path, capsys):
    save(tmp_path / "in/train/b.npy", CLIPS)
    save(tmp_path / "in/c.npy", CLIPS)
    assert convert(tmp_path / "in", tmp_path / "out") == 1
    assert "c.npy: in no split, left out" in capsys.readouterr().err


def test_a_store_that_is_the_split_itself(tmp_path):
    store(tmp_path / "in/train", CLIPS)
    names = [source.name for source in find_clips(tmp_path / "in/train", base=tmp_path / "in").sources]
    assert names == ["train/0", "train/1", "train/2"]
