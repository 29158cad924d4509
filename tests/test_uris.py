"""URIs of a bucket wherever a command takes data: over S3's protocol, to a server of this machine."""

import os
import socket
import time
import urllib.request

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

import raypipe
from raypipe import convert_to_h5, generate, train, tune
from raypipe.data.remote import fetch
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import RemoteFolder
from raypipe.data.video.io import write_video
from raypipe.workspace.dataset import dataset_preprocessing
from tests.raytools import free_ports, outcome
from tests.test_generate import moving, save_model

COMMANDS = {
    "--data_dir": lambda uri: (convert_to_h5.main, ["--data_dir", uri, "--out_dir", "shards"]),
    "--out_dir": lambda uri: (convert_to_h5.main, ["--data_dir", "videos", "--out_dir", uri]),
    "--dataset.root": lambda uri: (train.main, ["--run-name", "f-01-nll", "--dataset.root", uri]),
    "--model": lambda uri: (generate.main, ["--model", uri, "--input", "clip.mp4"]),
    "--input": lambda uri: (generate.main, ["--model", "best", "--input", uri]),
    "--warm-start": lambda uri: (tune.main, ["flow", "--warm-start", uri]),
}
"""A command for each flag that takes a URI."""


def upload(s3, folder, prefix):
    for path in folder.rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), "mine", f"{prefix}/{path.relative_to(folder)}")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A bucket with videos and a predictor."""
    (port,) = free_ports(1)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{port}"
    s3 = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    s3.create_bucket(Bucket="mine")
    folder = tmp_path_factory.mktemp("bucket")
    for split, count in (("train", 3), ("val", 1)):
        (folder / "videos" / split).mkdir(parents=True)
        for i in range(count):
            write_video(folder / "videos" / split / f"{i}.mp4", np.roll(moving(), i, 1), 8)
    upload(s3, folder / "videos", "videos")
    upload(s3, save_model(folder / "best"), "experiment/best")
    yield address
    server.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """The same for commands of this process, in an empty working directory, with an empty home."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("RAYPIPE_STORAGE", str(tmp_path / "storage"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MARKEDKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "MARKEDSECRET")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(flag, uri):
    main, argv = COMMANDS[flag](uri)
    return outcome(main, "prog", argv)


def convert(data, out):
    flags = ["--image_size", "32", "--num-workers", "1"]
    return outcome(convert_to_h5.main, "prog", ["--data_dir", data, "--out_dir", out, *flags])


def test_conversion_from_a_bucket_to_a_bucket(bucket, monkeypatch, capfd):
    assert convert("s3://mine/videos", "s3://mine/shards") == 0
    assert "--dataset.root s3://mine/shards --dataset.name shards" in capfd.readouterr().out
    copies = fetch("s3://mine/videos")
    assert convert(copies, bucket / "here") == 0
    for split, count in (("train", 3), ("val", 1)):
        far, here = open_shards(f"s3://mine/shards/{split}"), open_shards(bucket / "here" / split)
        assert far.names == here.names and len(far) == count
        for i in range(count):
            np.testing.assert_array_equal(far.clip(i), here.clip(i))
    made = dataset_preprocessing(RemoteFolder("s3://mine/shards"))  # it has no test split
    assert made == dataset_preprocessing(bucket / "here") and made.size == 32
    assert sorted(os.listdir(bucket)) == ["here", "home"], "nothing is written to a folder named like the URI"

    assert convert("s3://mine/videos", "s3://mine/shards") == 0  # again: all is there
    assert "already finished" in capfd.readouterr().err
    monkeypatch.setenv("HOME", str(bucket / "another machine"))
    assert convert("s3://mine/videos", "s3://mine/shards") == 2
    assert "s3://mine/shards/train already holds files" in capfd.readouterr().err


@pytest.mark.parametrize("model", ["s3://mine/experiment", "s3://mine/experiment/best"])
def test_prediction_with_a_model_and_a_clip_of_a_bucket(bucket, capfd, model):
    argv = ["--model", model, "--input", "s3://mine/videos/train/0.mp4", "--frames", "2"]
    assert outcome(generate.main, "prog", argv) == 0
    assert f"--model {model} --input s3://mine/videos/train/0.mp4" in capfd.readouterr().out
    assert (bucket / "0-prediction.mp4").is_file()
    assert raypipe.load_predictor(model).manifest.flow == "flow-00"


def test_an_unchanged_copy_is_used_again_and_a_changed_one_is_not(bucket, server):
    s3 = boto3.client("s3", endpoint_url=server)
    s3.put_object(Bucket="mine", Key="notes/sub/a.txt", Body=b"first")
    s3.put_object(Bucket="mine", Key="notes/b.txt", Body=b"b")
    copy = fetch("s3://mine/notes")
    assert (copy / "sub" / "a.txt").read_bytes() == b"first"
    number = (copy / "b.txt").stat().st_ino
    time.sleep(1)  # S3 gives times in seconds
    s3.put_object(Bucket="mine", Key="notes/sub/a.txt", Body=b"other")
    assert (fetch("s3://mine/notes") / "sub" / "a.txt").read_bytes() == b"other"
    assert (copy / "b.txt").stat().st_ino == number
    s3.delete_object(Bucket="mine", Key="notes/b.txt")
    assert not (fetch("s3://mine/notes") / "b.txt").exists()


def test_a_file_uri_is_a_path(bucket):
    write_video(bucket / "a clip.mp4", moving(), 8)
    save_model(bucket / "best")
    argv = ["--model", (bucket / "best").as_uri(), "--input", (bucket / "a clip.mp4").as_uri(), "--frames", "2"]
    assert outcome(generate.main, "prog", argv) == 0
    assert (bucket / "a clip-prediction.mp4").is_file()


def refusal(bucket, capfd, flag, uri):
    """The one line that a command prints about a URI, within ten seconds; nothing is left half done."""
    write_video(bucket / "clip.mp4", moving(), 8)
    write_video(bucket / "videos" / "train" / "0.mp4", moving(), 8)
    save_model(bucket / "best")
    before = sorted(path for path in bucket.rglob("*") if "home" not in path.parts)
    begin = time.monotonic()
    assert call(flag, uri) == 2
    assert time.monotonic() - begin < 10
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if "attempt" not in line or "error:" in line]
    assert out == "" and len(lines) == 1, err
    assert uri in lines[0]
    assert sorted(path for path in bucket.rglob("*") if "home" not in path.parts) == before
    assert "MARKED" not in err
    return lines[0]


@pytest.mark.parametrize("flag", COMMANDS)
def test_a_missing_bucket(bucket, capfd, flag):
    assert "no such" in refusal(bucket, capfd, flag, "s3://not-there/x")


@pytest.mark.parametrize("flag", [flag for flag in COMMANDS if flag != "--out_dir"])
def test_nothing_in_the_bucket(bucket, capfd, flag):
    assert "no " in refusal(bucket, capfd, flag, "s3://mine/not-there")


@pytest.mark.parametrize(
    "flag", [f if f in ("--out_dir", "--model") else pytest.param(f, marks=pytest.mark.long) for f in COMMANDS]
)
def test_nobody_there(bucket, capfd, monkeypatch, flag):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert "cannot be read after" in refusal(bucket, capfd, flag, "s3://mine/x")


def test_nobody_answers(bucket, capfd, monkeypatch):
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # after these, the system drops whoever connects
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{full.getsockname()[1]}")
        assert "cannot be read after 1 attempt (" in refusal(bucket, capfd, "--model", "s3://mine/x")


@pytest.mark.parametrize("flag", COMMANDS)
def test_a_refused_key(bucket, server, capfd, flag):
    def authentication(after: str) -> None:
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/reset-auth", after.encode(), headers))

    authentication("0")
    try:
        assert "access denied" in refusal(bucket, capfd, flag, "s3://mine/videos")
    finally:
        authentication("inf")


@pytest.mark.parametrize("flag", COMMANDS)
def test_a_secret_in_the_uri_is_refused_and_not_repeated(bucket, capfd, flag):
    save_model(bucket / "best")
    assert call(flag, "s3://key:MARKED@mine/x") == 2
    err = capfd.readouterr().err
    assert "contains a secret" in err and "MARKED" not in err and err.count("\n") == 1
