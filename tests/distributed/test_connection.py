"""Which Ray is joined: the one that is named, or that `ray start` made, and only if it answers."""

import logging
import os
import socket
import subprocess
import sys

import pytest
import ray

from raypipe.common.errors import ConfigError
from raypipe.distributed import connection
from tests.raytools import ROOT


@pytest.fixture(autouse=True)
def left_behind(monkeypatch, tmp_path):
    """The file in which `ray start` leaves its address; not there yet."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("named", ["", "auto", "local"])
def test_there_is_none(monkeypatch, named):
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert not connection.join()


def test_one_that_was_killed_is_not_waited_for(left_behind, caplog):
    """What `ray start` left behind stays when its processes, or the machine, were killed."""
    address = f"127.0.0.1:{closed_port()}"
    left_behind.write_text(address)
    with caplog.at_level(logging.WARNING):
        assert not connection.join()
    assert f"no Ray cluster answers at {address}, the address that `ray start` recorded" in caplog.text


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:1", "RAY_ADDRESS: no Ray cluster answers at 127.0.0.1:1"),
        ("127.0.0.1:99999", "RAY_ADDRESS: no Ray cluster answers at 127.0.0.1:99999"),
        ("http://127.0.0.1:8265", "RAY_ADDRESS: must be HOST:PORT"),
        ("head", "RAY_ADDRESS: must be HOST:PORT"),
    ],
)
def test_a_name_that_is_wrong(monkeypatch, address, says):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=says):
        connection.join()


@pytest.mark.cluster
def test_what_another_program_started_for_itself_is_left_alone(monkeypatch, tmp_path):
    """Ray's own `auto` would join it, and lose it when that program ends."""
    with monkeypatch.context() as there:
        there.delenv("RAY_TMPDIR")  # sockets need a short path
        there.setenv("RAY_AUTH_MODE", "disabled")
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        try:
            code = "from raypipe.distributed import connection; print(connection.join())"
            environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            environ["RAY_TMPDIR"] = str(tmp_path)
            done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, cwd=ROOT)
        finally:
            ray.shutdown()
    assert done.stdout == "False\n", done.stderr
