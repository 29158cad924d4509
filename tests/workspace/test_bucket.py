"""An experiment in a bucket: stored and fetched as it was at one moment, whatever fails in between; its lock."""

import os
import subprocess
import sys
import threading
import time

import pytest

from raypipe.common.errors import ConfigError, UserError
from raypipe.common.files import atomic_folder, write_atomic
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace import bucket
from raypipe.workspace.bucket import lock as locks
from raypipe.workspace.bucket import places, session, snapshot
from raypipe.workspace.bucket.lock import Lock, LockLostError
from raypipe.workspace.bucket.mirror import Mirror
from raypipe.workspace.bucket.snapshot import Index
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
from tests import s3tools
from tests.raytools import wait_for

URI = "s3://mine/storage"


@pytest.fixture(scope="module")
def server():
    with s3tools.s3_server("mine") as address:
        yield address


@pytest.fixture
def proxy(server, monkeypatch, tmp_path):
    """A proxy that passes everything on, and this process's access to an empty bucket through it."""
    s3 = s3tools.client(server)
    for item in s3.list_objects_v2(Bucket="mine").get("Contents", []):
        s3.delete_object(Bucket="mine", Key=item["Key"])
    proxy = s3tools.Proxy(server)
    with proxy.running() as address:
        for name, value in s3tools.variables(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        yield proxy


def keys(server):
    return {item["Key"] for item in s3tools.client(server).list_objects_v2(Bucket="mine").get("Contents", [])}


def mirror_at(place, uri=URI, attempts=5):
    """The mirror of an experiment with its local folder `place`."""
    return Mirror(RemoteFolder(uri, attempts=attempts, wait=0.01) / "e", place, place.with_name(f"{place.name}.tmp"))


def fill(place, number):
    """An experiment with files of several kinds; other numbers change some of them."""
    write_atomic(place / "config.yaml", "name: e\n")
    write_atomic(place / "study.log", "line\n" * number)
    write_atomic(place / "best" / "manifest.json", f"{number}")
    write_atomic(place / "flow" / "flow-00" / "model.safetensors", b"w" * 3_000_000)
    with atomic_folder(place / "flow" / f"flow-{number:02d}") as folder:
        (folder / "config.json").write_text(f"{number}")
        (folder / "model.safetensors").write_bytes(os.urandom(1000) + bytes([number]) * 1_500_000)
    write_atomic(place / "flow" / "flow-01.log" / "metrics.jsonl", "{}\n" * number)


def content(place):
    return {path: ((place / path).read_bytes(), stamp.mtime) for path, stamp in snapshot.listing(place).items()}


def no_check():
    pass


def test_what_is_stored_is_fetched_elsewhere_and_only_changes_are_written(server, proxy, tmp_path):
    here, there = mirror_at(tmp_path / "here"), mirror_at(tmp_path / "there")
    fill(here.folder, 1)
    here.store(no_check)
    assert not here.changed()
    there.fetch()
    assert content(there.folder) == content(here.folder)

    proxy.requests.clear()
    fill(there.folder, 2)
    (there.folder / "flow" / "flow-01" / "config.json").unlink()
    assert there.changed()
    there.store(no_check)
    # study.log, best/manifest.json (which flow-02's config.json equals), the new model and the log
    assert len(proxy.puts()) == 4
    here.fetch()
    assert content(there.folder) == content(here.folder)
    assert not (here.folder / "flow" / "flow-01" / "config.json").exists()
    shown = keys(server)
    assert {f"storage/e/{name}" for name in ("best/manifest.json", "config.yaml", ".raypipe/index.json")} < shown
    named = {file.sha256 for file in Index.from_json(here._read(".raypipe/index.json")).files.values()}
    assert {key.rpartition("/")[2] for key in shown if "/files/" in key} - {""} == named, "nothing is left over"


def test_an_interrupted_store_shows_the_old_state_and_is_continued(proxy, tmp_path):
    here, there = mirror_at(tmp_path / "here"), mirror_at(tmp_path / "there")
    fill(here.folder, 1)
    here.store(no_check)
    before = content(here.folder)
    fill(here.folder, 2)

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        here.store(killed)
    there.fetch()
    assert content(there.folder) == before
    proxy.requests.clear()
    again = mirror_at(tmp_path / "here")  # another process on the same machine: what it holds is newer than the bucket
    again.fetch()
    assert again.changed()
    again.store(no_check)
    assert proxy.puts() == []
    there.fetch()
    assert content(there.folder) == content(again.folder) != before


def test_a_folder_that_another_machine_went_on_with_is_replaced(proxy, tmp_path):
    here, there = mirror_at(tmp_path / "here"), mirror_at(tmp_path / "there")
    fill(here.folder, 1)
    here.store(no_check)
    there.fetch()
    fill(there.folder, 2)
    there.store(no_check)
    fill(here.folder, 3)
    again = mirror_at(tmp_path / "here")
    again.fetch()
    assert content(again.folder) == content(there.folder)


def test_a_look_copies_what_tells_how_far_it_is(proxy, tmp_path):
    here, there = mirror_at(tmp_path / "here"), mirror_at(tmp_path / "there")
    fill(here.folder, 1)
    here.store(no_check)
    there.look()
    assert set(snapshot.listing(there.folder)) == {
        "config.yaml", "study.log", "best/manifest.json"
    }  # fmt: skip
    there.fetch()
    assert content(there.folder) == content(here.folder)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_thirty_faults_tear_and_lose_nothing(server, tmp_path, monkeypatch, seed):
    proxy = s3tools.Proxy(server, seed, share=0.3)
    with proxy.running() as address:
        for name, value in s3tools.variables(address).items():
            monkeypatch.setenv(name, value)
        uri, number = f"s3://mine/faults-{seed}", 0
        here = mirror_at(tmp_path / "here", uri)
        began = time.monotonic()
        proxy.left = 30
        while proxy.left:
            number += 1
            assert number < 100
            fill(here.folder, number % 5)
            done = True
            try:
                here.store(no_check)
            except (UserError, OSError):
                done = False
            if number % 3 == 0:
                there, left = mirror_at(tmp_path / f"there-{number}", uri), proxy.left
                try:
                    there.fetch()
                except (UserError, OSError):  # continued once the faults are over
                    proxy.left = 0
                    there.fetch()
                    proxy.left = left
                if done:
                    assert content(there.folder) == content(here.folder)
        here.store(no_check)
        last = mirror_at(tmp_path / "last", uri)
        last.fetch()
        assert content(last.folder) == content(here.folder)
        assert len(proxy.injected) >= 30 and len(set(proxy.injected)) == len(s3tools.FAULTS)
        assert time.monotonic() - began < 90


def test_a_snapshot_is_one_moment(tmp_path):
    """A model folder that is replaced all the time is never mixed of two, nor newer than the study that names it."""
    folder, ended = tmp_path / "e", threading.Event()

    def write():
        number = 0
        while not ended.is_set():
            number += 1
            with atomic_folder(folder / "flow" / "flow-00") as made:
                for name in range(60):
                    (made / str(name)).write_text(str(number))
            with (folder / "study.log").open("a") as log:
                log.write(f"{number}\n")
            time.sleep(number % 8 * 0.006)

    folder.mkdir()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_for(lambda: (folder / "study.log").exists())
        for _ in range(30):
            taken = snapshot.take(folder, Index(), tmp_path / "staged")
            text = {path: place.read_text() for path, place in taken.staged.items() if ".old" not in path}
            models = {text[path] for path in text if path.startswith("flow/")}
            last = int(text["study.log"].split()[-1])
            assert len(models) <= 1 and models <= {str(last), str(last + 1)}
    finally:
        ended.set()
        thread.join()


def test_memory_of_an_upload_is_bounded(server, tmp_path):
    code = """
import sys
from pathlib import Path
from tests.workspace.test_bucket import mirror_at, no_check
mirror, status = mirror_at(Path(sys.argv[1])), Path("/proc/self/status")
peak = lambda: int(status.read_text().split("VmHWM:")[1].split()[0])
mirror.fetch()
before = peak()
mirror.store(no_check)
print((peak() - before) // 1024)
"""
    (tmp_path / "e").mkdir()
    with (tmp_path / "e" / "model.safetensors").open("wb") as file:
        file.truncate(64 * 2**20)
    environ = os.environ | s3tools.variables(server)
    argv = [sys.executable, "-c", code, tmp_path / "e"]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.3)
    monkeypatch.setattr(locks, "SILENT", 3.0)
    monkeypatch.setattr(session, "BEAT", 0.3)
    monkeypatch.setattr(session, "POLL", 0.1)
    monkeypatch.setattr(session, "PAUSE", 0.5)
    monkeypatch.setattr(session, "WAIT", 0.01)


def test_the_lock(proxy, quick):
    remote = RemoteFolder(f"{URI}/e", wait=0.01)
    first, second = Lock(remote, "one"), Lock(remote, "two")
    first.acquire(break_lock=False)
    with pytest.raises(ConfigError) as error:
        second.acquire(break_lock=False)
    text = str(error.value)
    assert f"process {os.getpid()} on {os.uname().nodename} holds the lock of this experiment since 2" in text
    assert "s old" in text and "--break-lock" in text and "s3://mine/storage/e:" in text
    with pytest.raises(ConfigError, match=r"holds the lock .* or add --break-lock if it has died"):
        second.check_free()
    first.check_free()
    first.renew()
    first.release()
    second.check_free()
    second.acquire(break_lock=False)
    Lock(remote, "two").acquire(break_lock=False)  # the process of the same machine has died
    with pytest.raises(LockLostError, match="has broken the lock"):
        second.check()


def test_a_silent_lock_can_be_broken_and_a_live_one_cannot(proxy, quick):
    remote = RemoteFolder(f"{URI}/e", wait=0.01)
    first, second = Lock(remote, "one"), Lock(remote, "two")
    first.acquire(break_lock=False)
    alive = threading.Event()

    def beat():
        while not alive.wait(0.3):
            first.renew()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="holds the lock"):
            second.acquire(break_lock=True)
    finally:
        alive.set()
        thread.join()
    second.acquire(break_lock=True)
    with pytest.raises(LockLostError):
        first.renew()


def test_of_many_that_want_the_lock_at_once_one_at_most_gets_it(proxy):
    remote = RemoteFolder(f"{URI}/e", wait=0.01)
    got, start = [], threading.Barrier(6)

    def want(number):
        lock = Lock(remote, str(number))
        start.wait()
        try:
            lock.acquire(break_lock=False)
            got.append(number)
        except ConfigError:
            pass

    threads = [threading.Thread(target=want, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) <= 1


def test_hold_stores_while_it_runs_and_another_machine_goes_on(server, proxy, quick, tmp_path, monkeypatch, capfd):
    storage = places.local_storage(URI)
    place = Workspace(storage, "e")
    with hold(place):
        fill(place.folder, 1)
        wait_for(lambda: RemoteFolder(f"{URI}/e").stat("best/manifest.json")[0] >= 0)
        assert bucket.runner(storage, "e") == f"process {os.getpid()} on {os.uname().nodename}"
        monkeypatch.setenv("HOME", str(tmp_path / "another machine"))
        other = Workspace(places.local_storage(URI), "e")
        with pytest.raises(ConfigError, match=r"s3://mine/storage/e: process \d+ on .* holds the lock"), hold(other):
            pass
        assert not other.folder.exists()
    assert "stored   s3://mine/storage/e" in capfd.readouterr().out
    with hold(other):
        assert content(other.folder) == content(place.folder)
    assert bucket.runner(other.storage, "e") is None
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(b"MARKED" in text for text in [*files, *s3tools.contents(server)])


def test_who_loses_the_lock_is_interrupted(proxy, quick):
    place = Workspace(places.local_storage(URI), "e")

    def search():
        with hold(place):
            thief = Lock(RemoteFolder(f"{URI}/e"), "thief")
            thief._owner = locks.Owner(1, "far", "2026", "thief")
            thief._write()
            for name in thief._others():
                thief._remote.delete(name)
            time.sleep(60)

    began = time.monotonic()
    with pytest.raises(LockLostError, match="process 1 on far has broken the lock"):
        search()
    assert time.monotonic() - began < 30


LOOP = """
import hashlib, os, sys, time
from pathlib import Path
from raypipe.common.files import atomic_folder
from raypipe.workspace.bucket import lock, places, session
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
lock.BEAT, lock.SILENT, session.BEAT, session.POLL = 0.3, 3.0, 0.3, 0.05
place = Workspace(places.local_storage(sys.argv[1]), "e")
with hold(place, break_lock=True):
    study = place.folder / "study.log"
    number = len(study.read_text().splitlines()) if study.exists() else 0
    while True:
        with atomic_folder(place.folder / "flow" / f"flow-{number:02d}") as folder:
            (folder / "model.safetensors").write_bytes(weights := os.urandom(400_000))
            (folder / "config.json").write_text(hashlib.sha256(weights).hexdigest())
        with study.open("a") as log:
            log.write(f"{number}\\n")
        number += 1
        print(number, flush=True)
        time.sleep(0.03)
"""
"""A search that trains trials in no time, and goes on with those that the bucket shows."""


def test_killed_at_any_moment_nothing_that_the_bucket_shows_is_lost_or_torn(proxy, tmp_path):
    known = {}
    for number, moment in enumerate((40, 87, 63)):
        environ = os.environ | {"HOME": str(tmp_path / f"machine {number}")}
        process = subprocess.Popen([sys.executable, "-c", LOOP, URI], env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(moment):
            assert process.stdout.readline()
        process.kill()
        process.communicate()
        there = mirror_at(tmp_path / f"there {number}")
        there.fetch()
        study = there.folder / "study.log"
        trials = study.read_text().split() if study.exists() else []
        assert trials == [str(n) for n in range(len(trials))] and len(trials) >= len(known)
        for trial in trials:
            folder = there.folder / "flow" / f"flow-{int(trial):02d}"
            digest = (folder / "config.json").read_text()
            assert snapshot.digest(folder / "model.safetensors") == known.setdefault(trial, digest) == digest
    assert known


def test_a_bucket_that_is_full_for_a_while_and_one_that_stays_full(proxy, quick, capfd, caplog, monkeypatch):
    place = Workspace(places.local_storage(URI), "e")
    with hold(place):
        fill(place.folder, 1)
        wait_for(lambda: RemoteFolder(f"{URI}/e").stat("best/manifest.json")[0] >= 0)
        proxy.refuses = True
        fill(place.folder, 2)
        wait_for(lambda: "is not stored yet" in caplog.text)
        proxy.refuses = False
        wait_for(lambda: "all is stored again" in caplog.text)
    monkeypatch.setattr(session, "PATIENCE", 0.5)

    def search():
        with hold(place):
            fill(place.folder, 3)
            proxy.refuses = True

    with pytest.raises(ConfigError) as error:
        search()
    assert "s3://mine/storage/e: not all is stored (" in str(error.value) and str(place.folder) in str(error.value)
    proxy.refuses = False

    class Args:
        storage = URI

    assert bucket.storage_root(Args()) == place.storage  # the next command stores it
    there = mirror_at(place.storage.with_name("there"))
    there.fetch()
    assert content(there.folder) == content(place.folder)
    assert not list(places.home(place.storage).glob("*.unsaved"))


def test_a_damaged_content_is_named(server, proxy, tmp_path):
    here = mirror_at(tmp_path / "here")
    fill(here.folder, 1)
    here.store(no_check)
    name = next(key for key in keys(server) if "/files/" in key and not key.endswith("/"))
    s3tools.client(server).put_object(Bucket="mine", Key=name, Body=b"other")
    with pytest.raises(UserError, match=r"s3://mine/storage/e/\.raypipe/files/.*damaged"):
        mirror_at(tmp_path / "there", attempts=2).fetch()


def test_a_path_that_leaves_the_folder_is_refused():
    with pytest.raises(ValueError, match="is named"):
        Index.from_json(b'{"id": "1", "files": {"../x": ["a", 1, 1]}}')
