"""Packing and reading clips: round trips, and damage that is named."""

import errno
import multiprocessing
import os
import pickle
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.data.shards import PackedShards, ReferenceShards, ShardWriter, open_shards
from raypipe.data.shards.integrity import USER_BLOCK, seal_shard
from raypipe.data.shards.writer import FORMAT, Clip, write_columns, write_index


def clips(count=7, dtype=np.uint8, shape=(8, 6, 3), seed=0):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(int(rng.integers(1, 9)), *shape)) * 50).astype(dtype) for _ in range(count)]


def pack(folder, content, **options):
    with ShardWriter(folder, **options) as writer:
        for i, clip in enumerate(content):
            writer.add(f"clip-{i}-é", clip, source=f"{i}.mp4")
    return folder


def publish(folder, content, per_shard=3):
    """The reference layout, as its converter writes it."""
    folder.mkdir()
    for number, begin in enumerate(range(0, len(content), per_shard), 1):
        with h5py.File(folder / f"shard_{number:04d}.hdf5", "w") as file:
            for i, clip in enumerate(content[begin : begin + per_shard]):
                file.create_dataset(f"len/{i}", data=len(clip))
                for t, frame in enumerate(clip):
                    file.create_dataset(f"{i}/{t}", data=frame, compression="lzf")
    return folder


@pytest.mark.parametrize(("dtype", "shape"), [(np.uint8, (8, 6, 3)), (np.float16, (4, 2, 2))])
def test_round_trip(tmp_path, dtype, shape):
    content = clips(dtype=dtype, shape=shape)
    shards = open_shards(pack(tmp_path / "train", content, clips_per_shard=3))
    assert isinstance(shards, PackedShards)
    assert (len(shards), shards.frame_shape, shards.dtype) == (7, shape, dtype)
    assert shards.lengths.tolist() == [len(c) for c in content]
    assert shards.names[2] == "clip-2-é"
    assert shards.sources[2] == "2.mp4"
    assert shards.shard_of.tolist() == [0, 0, 0, 1, 1, 1, 2]
    for i, clip in enumerate(content):
        assert shards.clip(i).dtype == dtype
        np.testing.assert_array_equal(shards.clip(i), clip)
        np.testing.assert_array_equal(shards.frames(i, slice(None, None, 2)), clip[::2])
        np.testing.assert_array_equal(shards.frames(i, [-1, 0]), clip[[-1, 0]])
    with pytest.raises(IndexError):
        shards.frames(0, [99])
    with pytest.raises(IndexError):
        shards.clip(7)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_windows_equal_slices_in_both_layouts(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("layouts")
    content = clips(seed=data.draw(st.integers(0, 5)))
    layouts = [open_shards(pack(root / "a", content, clips_per_shard=2)), open_shards(publish(root / "b", content))]
    window, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    span = (window - 1) * stride + 1
    choices = [(c, s) for c, clip in enumerate(content) for s in range(len(clip) - span + 1)]
    picked = data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=6))
    wanted = np.stack([content[c][s : s + span : stride] for c, s in picked])
    for shards in layouts:
        got = shards.windows([c for c, _ in picked], [s for _, s in picked], window, stride)
        np.testing.assert_array_equal(got, wanted)


def test_a_window_beyond_its_clip_is_refused(tmp_path):
    shards = open_shards(pack(tmp_path / "a", [np.zeros((4, 2, 2, 3), np.uint8)] * 2))
    with pytest.raises(IndexError, match="beyond its clip"):
        shards.windows([0], [2], 3)


def test_reference_layout(tmp_path):
    content = clips(12)
    shards = open_shards(publish(tmp_path / "train", content, per_shard=11))
    assert isinstance(shards, ReferenceShards)
    assert shards.names[10:] == ["shard_0001/10", "shard_0002/0"]
    for i, clip in enumerate(content):
        np.testing.assert_array_equal(shards.clip(i), clip)


def test_damage_in_the_reference_layout_is_named(tmp_path):
    folder = publish(tmp_path / "train", clips(3))
    with h5py.File(folder / "shard_0001.hdf5", "a") as file:
        del file["1/0"]
    with pytest.raises(ValueError, match=r"shard_0001.hdf5: clip shard_0001/1: its length says"):
        open_shards(folder)
    (folder / "shard_0001.hdf5").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"shard_0001.hdf5: damaged"):
        open_shards(folder)


def _longer(file):
    del file["len/1"]
    file["len/1"] = 99


def _other_size(file):
    del file["1/0"]
    file["1/0"] = np.zeros((8, 7, 3), np.uint8)


def _other_type(file):
    del file["1/0"]
    file["1/0"] = np.zeros((8, 6, 3), np.float32)


def _renamed(file):
    file.move("1/0", "1/first")


def _no_group(file):
    del file["1"]


def _no_length(file):
    del file["len/1"]


def _dataset_for_a_group(file):
    del file["1"]
    file["1"] = 3


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_longer, "its length says 99 frames, but it contains"),
        (_other_size, r"frame 0 is uint8 \[8, 7, 3\], not uint8 \[8, 6, 3\]"),
        (_other_type, "frame 0 is float32"),
        (_renamed, "frame 0 is damaged"),
        (_no_group, "has no frames"),
        (_no_length, "has no length in `len`"),
        (_dataset_for_a_group, "its length is damaged"),
    ],
)
def test_each_damage_in_the_reference_layout_names_file_and_clip(tmp_path, damage, message):
    content = [*clips(3), np.zeros((9, 8, 6, 3), np.uint8)]
    folder = publish(tmp_path / "train", content, per_shard=4)
    with h5py.File(folder / "shard_0001.hdf5", "a") as file:
        damage(file)
    with pytest.raises(ValueError, match=rf"shard_0001\.hdf5: clip shard_0001/1: {message}"):
        open_shards(folder).clip(1)


def test_the_hash_of_the_reference_layout_knows_a_changed_frame(tmp_path):
    """Also one of the same size, in a file far larger than what is sampled of it."""
    rng = np.random.default_rng(0)
    content = [rng.integers(0, 256, (20, 64, 64, 3), dtype=np.uint8) for _ in range(8)]
    changed = [*content[:3], content[3] ^ 5, *content[4:]]
    hashes = [
        open_shards(publish(tmp_path / name, c, per_shard=8)).content_hash()
        for name, c in (("a", content), ("b", content), ("c", changed))
    ]
    assert (tmp_path / "a" / "shard_0001.hdf5").stat().st_size > 1 << 20
    assert hashes[0] == hashes[1] != hashes[2]


def test_equal_clips_give_equal_bytes(tmp_path):
    folders = [pack(tmp_path / name, clips(), clips_per_shard=4, key="k") for name in "ab"]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == ["index.parquet", "shard_0001.hdf5", "shard_0002.hdf5"]
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_shards_are_closed_by_bytes_too(tmp_path):
    content = [np.zeros((10, 10), np.uint8)] * 5
    assert len(open_shards(pack(tmp_path / "a", content, shard_bytes=200)).shard_names) == 3


def test_the_manifest(tmp_path):
    content = clips()
    rows = pq.read_table(pack(tmp_path / "train", content, clips_per_shard=5) / "index.parquet").to_pylist()
    assert list(rows[0]) == ["clip", "source", "frames", "shard", "offset", "crc32"]
    assert (rows[5]["shard"], rows[5]["offset"], rows[6]["offset"]) == ("shard_0002.hdf5", 0, len(content[5]))


def test_the_hash_knows_the_content_and_not_the_cutting(tmp_path):
    content = clips()
    hashes = [
        open_shards(pack(tmp_path / "a", content, clips_per_shard=3)).content_hash(),
        open_shards(pack(tmp_path / "b", content)).content_hash(),
        open_shards(pack(tmp_path / "c", [content[0] ^ 1, *content[1:]])).content_hash(),
        open_shards(publish(tmp_path / "d", content)).content_hash(),
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def _clip_in_child(shards, i, queue):
    queue.put(shards.clip(i))


@pytest.mark.parametrize("layout", [pack, publish])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_safe_in_other_processes(tmp_path, layout, method):
    content = clips()
    shards = open_shards(layout(tmp_path / "train", content))
    shards.clip(0)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    child = context.Process(target=_clip_in_child, args=(shards, 3, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), content[3])
    child.join()
    assert len(pickle.dumps(shards)) < 4000


class Clips(torch.utils.data.Dataset):
    """What a user may build around shards."""

    def __init__(self, shards):
        self.shards = shards

    def __len__(self):
        return len(self.shards)

    def __getitem__(self, i):
        return int(self.shards.clip(i).astype(np.int64).sum())


@pytest.mark.parametrize(("layout", "method"), [(pack, "fork"), (publish, "fork"), (pack, "spawn")])
def test_safe_in_a_data_loader(tmp_path, layout, method):
    content = clips(20)
    shards = open_shards(layout(tmp_path / "train", content))
    shards.clip(0)
    loader = torch.utils.data.DataLoader(Clips(shards), batch_size=4, num_workers=2, multiprocessing_context=method)
    wanted = [int(clip.astype(np.int64).sum()) for clip in content]
    assert torch.cat(list(loader)).tolist() == wanted


@pytest.mark.parametrize("layout", [pack, publish])
def test_few_files_are_open_at_a_time(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(PackedShards, "MAX_OPEN", 3)
    monkeypatch.setattr(ReferenceShards, "MAX_OPEN", 3)
    content = clips(12)
    cut = {"clips_per_shard": 1} if layout is pack else {"per_shard": 1}
    shards = open_shards(layout(tmp_path / "train", content, **cut))
    before = len(os.listdir("/proc/self/fd"))
    for i in [*range(12), *range(12)]:
        np.testing.assert_array_equal(shards.clip(i), content[i])
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    # A batch of windows from more files than may stay open.
    np.testing.assert_array_equal(shards.windows(range(12), [0] * 12, 1)[:, 0], np.stack([c[0] for c in content]))
    del shards
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("layout", [pack, publish])
def test_threads_may_read_at_the_same_time(tmp_path, layout, monkeypatch):
    monkeypatch.setattr(PackedShards, "MAX_OPEN", 2)
    monkeypatch.setattr(ReferenceShards, "MAX_OPEN", 2)
    content = clips(12)
    cut = {"clips_per_shard": 1} if layout is pack else {"per_shard": 1}
    shards = open_shards(layout(tmp_path / "train", content, **cut))
    order = np.random.default_rng(0).integers(0, 12, 400).tolist()
    with ThreadPoolExecutor(4) as pool:
        for i, clip in zip(order, pool.map(shards.clip, order), strict=True):
            np.testing.assert_array_equal(clip, content[i])


def test_a_file_cut_off_while_it_is_open_is_an_error(tmp_path):
    """Mapped, it would be a signal that ends the process."""
    content = clips()
    folder = pack(tmp_path / "train", content)
    shards = open_shards(folder)
    for i in range(7):
        shards.clip(i)
    os.truncate(folder / "shard_0001.hdf5", offset_of_frames(folder / "shard_0001.hdf5") + 10)
    with pytest.raises(ValueError, match=r"shard_0001\.hdf5: clip clip-3-é: damaged shard \(truncated"):
        shards.windows([3], [0], 1)


def test_an_input_output_error_is_named(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    shards = open_shards(pack(tmp_path / "train", clips()))
    shards.clip(2)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ValueError, match=r"shard_0001\.hdf5: clip clip-2-é: .*Input/output error"):
        shards.clip(2)
    with pytest.raises(ValueError, match=r"shard_0001\.hdf5: clip clip-2-é: .*Input/output error"):
        shards.windows([2], [0], 1)


def sparse(folder, clips_each, frames):
    """Packed shards of zeros that take no room on disk: 10 shards of clips [frames, 128, 128, 3]."""
    folder.mkdir()
    shape = (128, 128, 3)
    crc = zlib.crc32(bytes(frames * int(np.prod(shape))))
    for number in range(1, 11):
        path = folder / f"shard_{number:04d}.hdf5"
        lengths = np.full(clips_each, frames)
        names = [Clip(f"{number}/{i}", np.zeros((1, 1), np.uint8)) for i in range(clips_each)]
        with h5py.File(path, "w", libver=("earliest", "v110"), userblock_size=USER_BLOCK) as file:
            file.attrs["format"], file.attrs["key"] = FORMAT, ""
            data = file.create_dataset("frames", (frames * clips_each, *shape), np.uint8, fill_time="never")
            data[-1] = 0
            write_columns(file, names, np.cumsum(lengths) - lengths, lengths, np.full(clips_each, crc, np.uint32))
            begin, size = data.id.get_offset(), data.nbytes
        seal_shard(path, begin, begin + size)
    write_index(folder)
    return folder


def resident():
    """Bytes of this process in memory, its own and those of mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * sum(int(status[name].split()[0]) for name in ("RssAnon", "RssFile"))


@pytest.mark.slow
@pytest.mark.parametrize(("clips_each", "size"), [(5, 2e9), pytest.param(21, 10e9, marks=pytest.mark.long)])
def test_a_large_set_is_read_in_little_memory(tmp_path, clips_each, size):
    """10 files: every clip, each checked whole, and windows of it."""
    shards = open_shards(sparse(tmp_path / "train", clips_each=clips_each, frames=1000))
    assert shards.lengths.sum() * 128 * 128 * 3 > size
    before = most = resident()
    rng = np.random.default_rng(0)
    for i in range(0, len(shards), 5):
        picked = np.arange(i, min(i + 5, len(shards)))
        windows = shards.windows(picked, rng.integers(0, 1000 - 16, len(picked)), 16)
        assert not windows.any()
        most = max(most, resident())
    assert most - before < 50e6


def test_nothing_half_written_stays(tmp_path):
    with pytest.raises(AttributeError):
        pack(tmp_path / "a", [*clips(5), None], clips_per_shard=2)
    assert list((tmp_path / "a").iterdir()) == []


def test_the_remains_of_a_killed_run_are_refused_and_replaced(tmp_path):
    folder = pack(tmp_path / "a", clips(5), clips_per_shard=2)
    (folder / "index.parquet").unlink()
    (folder / ".shard_0004.hdf5.123.tmp").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"incomplete, index\.parquet is missing"):
        open_shards(folder)
    assert len(open_shards(pack(folder, clips(1)))) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["index.parquet", "shard_0001.hdf5"]


def test_finished_and_foreign_folders_are_not_touched(tmp_path):
    with pytest.raises(ValueError, match="finished dataset"):
        pack(pack(tmp_path / "a", clips()), clips())
    with pytest.raises(ValueError, match="not written by raypipe"):
        pack(publish(tmp_path / "b", clips()), clips())
    assert len(open_shards(tmp_path / "b")) == 7


@pytest.mark.parametrize(
    ("name", "clip", "message"),
    [
        ("a", np.zeros((2, 4, 4, 3), np.uint8), "two clips are named 'a'"),
        ("b", np.zeros((0, 4, 4, 3), np.uint8), "clip b: must be"),
        ("b", np.zeros((2, 4, 5, 3), np.uint8), r"clip b: has uint8 frames of \[4, 5, 3\]"),
        ("b", np.zeros((2, 4, 4, 3), np.float32), "clip b: has float32 frames"),
        ("", np.zeros((2, 4, 4, 3), np.uint8), "has no name"),
    ],
)
def test_bad_clips(tmp_path, name, clip, message):
    def write():
        with ShardWriter(tmp_path / "a") as writer:
            writer.add("a", np.zeros((2, 4, 4, 3), np.uint8))
            writer.add(name, clip)

    with pytest.raises(ValueError, match=message):
        write()


def test_nothing_here(tmp_path):
    message = "no shards in this folder; create them with python -m raypipe.convert_to_h5 --data_dir VIDEOS --out_dir"
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=message):
            open_shards(folder)
    with pytest.raises(ValueError, match="no clip was added"), ShardWriter(tmp_path / "a"):
        pass


def offset_of_frames(path):
    with h5py.File(path) as file:
        return file["frames"].id.get_offset()


def test_a_flipped_bit_is_named(tmp_path):
    content = clips()
    folder = pack(tmp_path / "train", content, clips_per_shard=4)
    path = folder / "shard_0002.hdf5"
    raw = bytearray(path.read_bytes())
    raw[offset_of_frames(path) + content[4].nbytes + 7] ^= 1
    path.write_bytes(raw)
    shards = open_shards(folder)
    shards.clip(4)
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: clip clip-5-é is damaged"):
        shards.clip(5)
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: clip clip-5-é is damaged"):
        shards.windows([0, 5], [0, 0], 1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_truncated_shard_is_named(tmp_path_factory, data):
    folder = pack(tmp_path_factory.mktemp("cut") / "train", clips(), clips_per_shard=4)
    path = folder / "shard_0002.hdf5"
    raw = path.read_bytes()
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: clip clip-[456]-é"):
        [open_shards(folder).clip(i) for i in range(7)]


@pytest.mark.parametrize("change", ["missing", "dtype", "shape", "chunked"])
def test_a_wrong_dataset_is_named(tmp_path, change):
    folder = pack(tmp_path / "train", clips(), clips_per_shard=4)
    with h5py.File(folder / "shard_0002.hdf5", "a") as file:
        frames = file["frames"][:]
        del file["frames"]
        if change == "dtype":
            file["frames"] = frames.astype(np.int16)
        elif change == "shape":
            file["frames"] = frames[:, :2]
        elif change == "chunked":
            file.create_dataset("frames", data=frames, compression="lzf")
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: clip clip-4-é"):
        open_shards(folder).clip(4)


def test_a_missing_shard_and_a_broken_manifest_are_named(tmp_path):
    folder = pack(tmp_path / "train", clips(), clips_per_shard=4)
    (folder / "shard_0002.hdf5").unlink()
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: missing"):
        open_shards(folder)
    (folder / "index.parquet").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"index\.parquet: not a manifest"):
        open_shards(folder)
