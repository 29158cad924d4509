"""The lock of an experiment in a bucket, and a command that works on the experiment under it."""

import os
import threading
import time

import pytest

from raypipe.common.errors import ConfigError
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace import bucket
from raypipe.workspace.bucket import lock as locks
from raypipe.workspace.bucket import places, session
from raypipe.workspace.bucket.lock import Lock, LockLostError
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
from tests import s3tools
from tests.raytools import wait_for
from tests.workspace.test_bucket import URI, content, fill, mirror_at


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
