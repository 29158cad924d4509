"""`raypipe.open_search` on a search in a bucket, by URI."""

import pytest
import torch

import raypipe
from raypipe.common.errors import UserError
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace.bucket.mirror import Mirror
from tests import s3tools
from tests.recordedtools import cut, unpack
from tests.report.test_view import predict

ROOT = "s3://mine/storage"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """The storage of another machine. This one can read the bucket, and has an empty home."""
    with s3tools.s3_server("mine") as address:
        for name, value in s3tools.variables(address).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        yield tmp_path / "machine"


def store(workspace, name):
    Mirror(RemoteFolder(ROOT) / name, workspace.folder, workspace.storage / "tmp").store(lambda: None)


def test_it_answers_as_its_folder_does(machine):
    workspace = unpack(machine)
    store(workspace, "demo")
    there, here = raypipe.open_search(f"{ROOT}/demo"), raypipe.open_search(workspace.folder)
    assert there.trials.equals(here.trials) and there.state == here.state == "finished"
    assert there.curve("flow-00").equals(here.curve("flow-00")) and there.config("flow-01") == here.config("flow-01")
    assert torch.equal(predict(there.predictor("flow-00")), predict(here.predictor("flow-00")))
    assert there.report().read_bytes() == here.report().read_bytes()
    assert raypipe.open_search(ROOT).trials.equals(here.trials)  # the latest of the storage root
    assert raypipe.open_search(f"{ROOT}/demo/").trials.equals(here.trials)


def test_it_sees_what_is_stored_after_it_was_opened(machine):
    workspace = cut(machine)
    store(workspace, "demo")
    view = raypipe.open_search(f"{ROOT}/demo")
    assert view.state == "not running" and not (view.folder / "best").exists()
    assert view.trials.num_rows == raypipe.open_search(workspace.folder).trials.num_rows
    store(unpack(machine / "later"), "demo")
    assert view.state == "finished"


def test_what_is_not_there_is_said_in_a_line(machine):
    store(cut(machine), "demo")
    for uri, why in (
        ("s3://mine/empty", "s3://mine/empty: no search in this folder"),
        (f"{ROOT}/dem", f"{ROOT}/dem: no search in this folder"),
        ("s3://nowhere/storage/demo", "nowhere"),
        ("s3://mine", "s3://mine: no search in this folder"),
    ):
        with pytest.raises(UserError) as raised:
            raypipe.open_search(uri)
        assert why in str(raised.value) and "\n" not in str(raised.value)
