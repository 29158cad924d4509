"""Which Ray is joined: the one that is named, or that `ray start` made, and only if it answers."""

import logging
import os
import socket
import subprocess
import sys

import pytest
import ray

from raypipe import convert_to_h5
from raypipe.common.errors import ConfigError
from raypipe.distributed import connection
from tests.raytools import ROOT
from tests.videotools import noise, save_frames


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
        ("ray://127.0.0.1:1", "RAY_ADDRESS: no Ray cluster answers at ray://127.0.0.1:1; start it, or unset"),
        ("ray://head", "RAY_ADDRESS: must be HOST:PORT"),
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


@pytest.fixture
def videos(tmp_path):
    for split in ("train", "val", "test"):
        save_frames(tmp_path / "videos" / split / "a", noise(0))
        save_frames(tmp_path / "videos" / split / "b", noise(1))
    return tmp_path / "videos"


def convert(videos):
    flags = ["--data_dir", str(videos), "--out_dir", str(videos.with_name("out")), "--image_size", "16"]
    return convert_to_h5.main(flags)


def test_a_conversion_goes_on_without_a_ray_that_cannot_be_joined(left_behind, videos, monkeypatch, caplog, capsys):
    """Something answers at the address that `ray start` recorded, but it is no Ray that lets us in."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        left_behind.write_text(f"127.0.0.1:{server.getsockname()[1]}")

        def refuse(address, **settings):
            raise RuntimeError("Version mismatch: the cluster runs Ray 2.9")

        monkeypatch.setattr(ray, "init", refuse)
        assert convert(videos) == 0
    assert "Version mismatch" in caplog.text
    assert "converting in processes of this machine instead" in caplog.text
    assert (videos.with_name("out") / "test" / "index.parquet").is_file()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "head"])
def test_a_conversion_goes_on_without_the_ray_that_it_was_told_to_join(videos, monkeypatch, caplog, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert convert(videos) == 0
    (warning,) = [record.getMessage() for record in caplog.records if "RAY_ADDRESS" in record.getMessage()]
    assert address in warning and warning.endswith("; converting in processes of this machine instead")
    assert (videos.with_name("out") / "test" / "index.parquet").is_file()


def test_a_ray_started_here_has_the_cpus_that_this_process_may_use(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(connection, "cpu_count", lambda: 1)
    given = {}
    monkeypatch.setattr(ray, "init", lambda *args, **settings: given.update(settings))
    connection.start_ray()
    assert given["num_cpus"] == 1
