"""An experiment in a bucket: stored and fetched as it was at one moment, whatever fails in between; its lock."""

import os
import subprocess
import sys
import threading
import time

import pytest

from raypipe.common.errors import UserError
from raypipe.common.files import atomic_folder, sha256, write_atomic
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace.bucket import snapshot
from raypipe.workspace.bucket.mirror import Mirror
from raypipe.workspace.bucket.snapshot import Index
from tests import s3tools
from tests.raytools import wait_for

URI = "s3://mine/storage"


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
    named = {file.sha256 for file in here._read_index().files.values()}
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


def test_a_look_while_it_is_stored(server, monkeypatch, tmp_path):
    for name, value in s3tools.variables(server).items():
        monkeypatch.setenv(name, value)
    uri, ended = "s3://mine/looked", threading.Event()
    here, there = mirror_at(tmp_path / "here", uri), mirror_at(tmp_path / "there", uri)

    def store():
        for number in range(25):
            write_atomic(here.folder / "study.log", "line\n" * number)
            write_atomic(here.folder / "logs" / f"{number}", f"{number}")
            here.store(no_check)
        ended.set()

    thread = threading.Thread(target=store)
    thread.start()
    while not ended.is_set():
        there.look()
    thread.join()
    there.look()
    assert len((there.folder / "study.log").read_text().split()) == 24


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
            assert sha256(folder / "model.safetensors") == known.setdefault(trial, digest) == digest
    assert known


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
