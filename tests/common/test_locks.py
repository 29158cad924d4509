"""Locks on file systems that have none, and waiting for another process."""

import errno
import fcntl
import os
import threading
import time

import pytest

from raypipe import convert_to_h5
from raypipe.common import locks
from raypipe.common.errors import UserError
from raypipe.common.locks import Timeout, file_lock
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
from tests.videotools import noise, save_frames


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def without_locks(request, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(getattr(errno, request.param), os.strerror(getattr(errno, request.param)))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_file_system_without_locks_is_named(without_locks, tmp_path):
    for take in (lambda lock: lock.acquire(), lambda lock: lock.acquire(timeout=0), lambda lock: lock.__enter__()):
        with pytest.raises(UserError, match=f"{tmp_path}: its file system has no file locks.*local disk") as error:
            take(file_lock(tmp_path / "lock"))
        assert "\n" not in str(error.value)


def test_an_experiment_there_is_refused_and_leaves_nothing(without_locks, tmp_path):
    with pytest.raises(UserError, match="no file locks"), hold(Workspace(tmp_path, "e")):
        pass
    assert not (tmp_path / "e").exists()


def test_so_is_a_conversion(without_locks, tmp_path, capsys):
    save_frames(tmp_path / "videos" / "train" / "a", noise(0))
    flags = ["--data_dir", str(tmp_path / "videos"), "--out_dir", str(tmp_path / "out"), "--image_size", "16"]
    assert convert_to_h5.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"raypipe.convert_to_h5: error: {tmp_path / 'out'}: its file system has no file locks")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_errors_pass(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        file_lock(tmp_path / "file" / "lock").acquire()
    with file_lock(tmp_path / "lock", blocking=False), pytest.raises(Timeout):
        file_lock(tmp_path / "lock", blocking=False).acquire()


def test_a_wait_is_said(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(locks, "QUIET_SECONDS", 0.2)
    held = threading.Event()

    def hold_for_a_second():
        with file_lock(tmp_path / "lock"):
            held.set()
            time.sleep(1)

    other = threading.Thread(target=hold_for_a_second)
    other.start()
    held.wait()
    with file_lock(tmp_path / "lock"):
        assert f"waiting for another process, which holds the lock {tmp_path / 'lock'}" in caplog.text
    other.join()
