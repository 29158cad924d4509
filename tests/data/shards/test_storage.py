"""Shards under a URI: copied once, whole or not at all, by whatever storage does on purpose here."""

import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs

from raypipe.data.shards import ReferenceShards, RemoteFolder, ShardWriter, open_shards
from raypipe.data.shards.cache import Cache
from raypipe.data.shards.storage import TRANSFER


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    """Python dislikes threads that wake up in Arrow while it ends."""
    yield
    for thread in threading.enumerate():
        if thread.name == TRANSFER:
            thread.join(20)


class Faulty:
    """A file that fails, ends early, stalls or dawdles, as `fault` says."""

    def __init__(self, path, fault):
        self.file = Path(path).open("rb")  # noqa: SIM115
        self.fault, self.closed = fault, False

    def read(self, size=-1):
        if self.fault == "fail" and self.file.tell():
            raise OSError("connection reset")
        if self.fault == "stall" and self.file.tell():
            time.sleep(2)
        if self.fault == "slow":
            time.sleep(0.1)
        if self.fault == "long":
            return b"x" * size
        piece = self.file.read(min(size, 1000) if self.fault else size)
        if self.fault == "truncate":
            self.fault = "end"
        elif self.fault == "end":
            return b""
        return piece

    def close(self):
        self.file.close()
        self.closed = True


class Storage(fs.FileSystemHandler):
    """A folder as a distant storage. `faults`: one line a fault still to come; `opened`: one line a file opened."""

    def __init__(self, root):
        self.root = Path(root)
        (self.root / ".faults").touch()
        (self.root / ".opened").touch()

    def plan(self, *faults):
        (self.root / ".faults").write_text("\n".join(faults))

    def opened(self, ending=".hdf5"):
        return [line for line in (self.root / ".opened").read_text().splitlines() if line.endswith(ending)]

    def get_type_name(self):
        return "storage"

    def normalize_path(self, path):
        return path

    def _info(self, path):
        where = self.root / path
        if not where.exists():
            return fs.FileInfo(path, fs.FileType.NotFound)
        stat = where.stat()
        kind = fs.FileType.Directory if where.is_dir() else fs.FileType.File
        return fs.FileInfo(path, kind, size=stat.st_size, mtime_ns=stat.st_mtime_ns)

    def get_file_info(self, paths):
        return [self._info(path) for path in paths]

    def get_file_info_selector(self, selector):
        folder = self.root / selector.base_dir
        if not folder.is_dir():
            raise FileNotFoundError(selector.base_dir)
        return [self._info(f"{selector.base_dir}/{name}") for name in sorted(os.listdir(folder))]

    def open_input_stream(self, path):
        with (self.root / ".opened").open("a") as log:
            log.write(f"{path}\n")
        fault = ""
        if path.endswith(".hdf5"):
            fault, *rest = (self.root / ".faults").read_text().split("\n")
            if fault != "slow":  # that one stays
                self.plan(*rest)
        return pa.PythonFile(Faulty(self.root / path, fault), mode="r")

    def _refuse(self, *_):
        raise NotImplementedError

    open_input_file = open_output_stream = open_append_stream = create_dir = delete_dir = _refuse
    delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _refuse


def content(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8) for _ in range(6)]


def pack(folder, clips):
    with ShardWriter(folder, clips_per_shard=2) as writer:
        for i, clip in enumerate(clips):
            writer.add(f"clip-{i}", clip)


def publish(folder, clips):
    folder.mkdir(parents=True)
    with h5py.File(folder / "shard_0001.hdf5", "w") as file:
        for i, clip in enumerate(clips):
            file[f"len/{i}"] = len(clip)
            for t, frame in enumerate(clip):
                file.create_dataset(f"{i}/{t}", data=frame, compression="lzf")


@pytest.fixture
def storage(tmp_path):
    pack(tmp_path / "far" / "set" / "train", content())
    return Storage(tmp_path / "far")


@pytest.fixture
def folder(storage, tmp_path):
    return at(storage, tmp_path)


def at(storage, tmp_path, uri="storage://set/train", max_bytes=10**9, **more):
    options = {"stall": 20.0, "wait": 0.01, **more}
    return RemoteFolder(uri, Cache(str(tmp_path / "near"), max_bytes), filesystem=fs.PyFileSystem(storage), **options)


def check(shards, clips=None):
    for i, clip in enumerate(clips or content()):
        np.testing.assert_array_equal(shards.clip(i), clip)


def copies(tmp_path):
    return sorted(path.name.partition("-")[2] for path in (tmp_path / "near").iterdir() if path.is_file())


def test_shards_are_copied_once_when_first_opened(storage, folder, tmp_path):
    shards = open_shards(folder)
    assert storage.opened() == []
    shards.clip(3)
    assert storage.opened() == ["set/train/shard_0002.hdf5"]
    check(shards)
    check(open_shards(folder))
    assert len(storage.opened()) == 3
    assert copies(tmp_path) == ["index.parquet", *(f"shard_000{i}.hdf5" for i in (1, 2, 3))]
    assert shards.path(0) == "storage://set/train/shard_0001.hdf5"
    assert open_shards(storage.root / "set" / "train").content_hash() == shards.content_hash()


def test_the_reference_layout_too(storage, tmp_path):
    publish(storage.root / "old" / "train", content())
    shards = open_shards(at(storage, tmp_path, "storage://old/train"))
    assert isinstance(shards, ReferenceShards)
    check(shards)
    check(pickle.loads(pickle.dumps(open_shards(at(storage, tmp_path, "storage://old/train")))))
    assert len(storage.opened()) == 1


@pytest.mark.parametrize("fault", ["fail", "truncate", "long", "stall"])
def test_a_failed_transfer_is_tried_again(storage, tmp_path, fault):
    storage.plan(fault, fault)
    stall = 0.3 if fault == "stall" else 20.0
    check(open_shards(at(storage, tmp_path, stall=stall)))
    assert len(storage.opened()) == 5
    assert not [name for name in copies(tmp_path) if name.endswith(".part")]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("fail", "connection reset"),
        ("truncate", r"received 1000 bytes, but the listing says \d+"),
        ("long", "but the listing says"),
        ("stall", "received no data for 0.3 seconds"),
    ],
)
def test_what_never_succeeds_is_an_error_that_names_the_uri(storage, tmp_path, fault, reason):
    storage.plan(*[fault] * 9)
    shards = open_shards(at(storage, tmp_path, stall=0.3 if fault == "stall" else 20.0, attempts=3))
    with pytest.raises(
        ValueError, match=f"^storage://set/train/shard_0001.hdf5: .*after 3 attempts.*{reason}"
    ) as error:
        shards.clip(0)
    assert "\n" not in str(error.value)
    assert copies(tmp_path) == ["index.parquet"]
    storage.plan()
    check(shards)


def test_a_changed_set_is_not_mixed_with_old_copies(storage, folder):
    old = open_shards(folder)
    old.clip(0)
    shutil.rmtree(storage.root / "set" / "train")
    pack(storage.root / "set" / "train", content(1))
    check(open_shards(folder), content(1))
    np.testing.assert_array_equal(old.clip(0), content()[0])  # its file is open
    with pytest.raises(ValueError, match=r"storage://set/train/shard_0002\.hdf5: changed while it was read"):
        old.clip(2)


def test_damage_in_a_copy_names_the_uri(storage, folder, tmp_path):
    open_shards(folder).clip(0)
    copy = next((tmp_path / "near").glob("*shard_0001.hdf5"))
    raw = bytearray(copy.read_bytes())
    raw[len(raw) // 2] ^= 1
    copy.write_bytes(raw)
    with pytest.raises(ValueError, match=r"storage://set/train/shard_0001\.hdf5: clip clip-[01]"):
        check(open_shards(folder))


def _read(storage, tmp_path, begin, results):
    begin.wait()
    clip = open_shards(at(storage, tmp_path)).clip(0)
    results.put(int(clip.sum()))


def test_processes_share_one_transfer(storage, tmp_path):
    storage.plan("slow")
    context = multiprocessing.get_context("fork")
    begin, results = context.Barrier(3), context.Queue()
    children = [context.Process(target=_read, args=(storage, tmp_path, begin, results)) for _ in range(3)]
    for child in children:
        child.start()
    assert {results.get(timeout=60) for _ in children} == {int(content()[0].sum())}
    for child in children:
        child.join()
    assert len(storage.opened()) == 1


def test_a_killed_transfer_leaves_nothing_that_is_read(storage, folder, tmp_path):
    storage.plan("slow")
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_read, args=(storage, tmp_path, context.Barrier(1), context.Queue()))
    child.start()
    deadline = time.monotonic() + 30
    while not list((tmp_path / "near").glob("*.hdf5.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert copies(tmp_path) == ["index.parquet", "shard_0001.hdf5.part"]
    storage.plan()
    check(open_shards(folder))
    assert "shard_0001.hdf5.part" not in copies(tmp_path)


def test_the_cache_keeps_its_bound_and_open_files_stay_whole(storage, tmp_path, monkeypatch):
    size = (storage.root / "set" / "train" / "shard_0001.hdf5").stat().st_size
    bound = int(2.5 * size)
    shards = open_shards(at(storage, tmp_path, max_bytes=bound))
    for i in (0, 2, 4, 0, 2, 4):
        np.testing.assert_array_equal(shards.clip(i), content()[i])
        assert sum(path.stat().st_size for path in (tmp_path / "near").iterdir() if path.is_file()) <= bound
    assert len(storage.opened()) == 3
    assert copies(tmp_path)[-1] == "shard_0003.hdf5" and "shard_0001.hdf5" not in copies(tmp_path)
    check(open_shards(at(storage, tmp_path, max_bytes=bound)))  # again from afar
    assert len(storage.opened()) > 3
    with pytest.raises(
        ValueError, match=r"dataset\.cache_gb: must be at least .* to hold storage://set/train/shard_0003"
    ):
        open_shards(at(storage, tmp_path / "other", max_bytes=size - 1)).clip(5)


def test_a_file_uri_is_copied_as_any_other(storage, tmp_path):
    uri = (storage.root / "set" / "train").as_uri()
    check(open_shards(RemoteFolder(uri, Cache(str(tmp_path / "near")))))
    assert len(copies(tmp_path)) == 4


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nonsense://bucket/set", "nonsense://bucket/set: cannot be opened .*nonsense"),
        ("file:///nowhere/set", "file:///nowhere/set: no such file, folder or bucket"),
    ],
)
def test_a_uri_that_cannot_be_opened_is_named_in_one_line(uri, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        open_shards(uri)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_refused_or_does_not_answer(storage, tmp_path, monkeypatch):
    def refuse(self, selector):
        raise PermissionError("access denied")

    def hang(self, selector):
        time.sleep(2)

    for method, message in ((refuse, "access denied"), (hang, "after 2 attempts .received no data for 0.2 seconds")):
        monkeypatch.setattr(Storage, "get_file_info_selector", method)
        with pytest.raises(ValueError, match=f"^storage://set/train: .*{message}"):
            open_shards(at(storage, tmp_path, stall=0.2, attempts=2))


def test_nothing_under_a_uri(storage, tmp_path):
    (storage.root / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^storage://empty: no shards in this folder"):
        open_shards(at(storage, tmp_path, "storage://empty"))
