"""An S3 server, and access to it through a proxy that injects faults."""

import pytest

from raypipe.workspace.bucket import lock as locks
from raypipe.workspace.bucket import session
from tests import s3tools


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


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.3)
    monkeypatch.setattr(locks, "SILENT", 3.0)
    monkeypatch.setattr(session, "BEAT", 0.3)
    monkeypatch.setattr(session, "POLL", 0.1)
    monkeypatch.setattr(session, "PAUSE", 0.5)
    monkeypatch.setattr(session, "WAIT", 0.01)
