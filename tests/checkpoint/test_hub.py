"""A predictor is pushed to a hub and loaded back, over the HTTP interface of the Hugging Face Hub, on loopback."""

import os
import subprocess
import sys

import pytest
import torch

import raypipe
from raypipe.checkpoint.__main__ import main
from raypipe.data.shards import open_shards
from raypipe.data.video.io import write_video
from tests.hubtools import TOKEN, hub
from tests.raytools import ROOT, free_ports
from tests.test_generate import context, moving, save_model

CARD = '---\ntags: [raypipe]\n---\n# mine\n\n`raypipe.load_predictor("hf://USER/NAME")`\n'


@pytest.fixture
def server():
    with hub() as made:
        yield made


@pytest.fixture
def best(tmp_path):
    folder = save_model(tmp_path / "best")
    (folder / "README.md").write_text(CARD)
    (folder / "strip.png").write_bytes(b"PNG")
    (folder / "flow" / "optimizer.safetensors").write_bytes(b"not to be pushed")
    return folder


@pytest.fixture
def user(tmp_path, server):
    """A function that runs a command as somebody with an empty home; returns its exit code and what it printed."""
    # huggingface_hub reads its settings when it is imported, so each command has a process of its own.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    home = {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home/hf"), "HF_HUB_DISABLE_XET": "1"}
    (tmp_path / "home").mkdir()

    def run(*command, token=TOKEN, endpoint=None):
        variables = plain | home | {"HF_ENDPOINT": endpoint or server.address} | ({"HF_TOKEN": token} if token else {})
        variables["PYTHONPATH"] = str(ROOT)
        argv = [sys.executable, *map(str, command)]
        done = subprocess.run(argv, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=240)
        for text in (done.stdout, done.stderr, *server.requests):
            assert TOKEN not in text
        return done.returncode, done.stdout, done.stderr

    return run


def push(*args):
    return "-m", "raypipe.checkpoint", "push", *args


def test_a_predictor_goes_there_and_back(best, user, server, tmp_path):
    code, out, err = user(*push(best, "ann/mine"))
    assert (code, err) == (0, "")
    assert f"{server.address}/ann/mine" in out and "--model hf://ann/mine" in out
    there = server.repositories["ann/mine"]
    parts = [f"{part}/{name}" for part in ("autoencoder", "flow", "denoiser", "diffusion")
             for name in ("config.json", "model.safetensors")]  # fmt: skip
    assert there.keys() == {".gitattributes", "README.md", "strip.png", "manifest.json", *parts}
    assert there["README.md"].decode() == CARD.replace("hf://USER/NAME", "hf://ann/mine")
    assert (best / "README.md").read_text() == CARD
    assert there["flow/model.safetensors"] == (best / "flow/model.safetensors").read_bytes()
    assert server.commits == 1 and server.private == set()

    load = "import sys, torch, raypipe; frames = torch.load('frames.pt'); "
    load += "torch.save(raypipe.load_predictor('hf://ann/mine').predict(frames, 2), 'future.pt')"
    torch.save(context(), tmp_path / "frames.pt")
    assert user("-c", load, token=None) == (0, "", "")
    wanted = raypipe.load_predictor(best).predict(context(), 2)
    torch.testing.assert_close(torch.load(tmp_path / "future.pt"), wanted, atol=1e-4, rtol=0)  # by other threads
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path

    # `generate` reads it too, and without a network what was downloaded before.
    write_video(tmp_path / "clip.mp4", moving(), 8)
    argv = ("-m", "raypipe.generate", "--model", "hf://ann/mine", "--input", "clip.mp4", "--frames", "2")
    (port,) = free_ports(1)
    code, out, err = user(*argv, "--format", "shards", "--output", "out", endpoint=f"http://127.0.0.1:{port}")
    assert code == 0, err
    assert open_shards(tmp_path / "out").clip(0).shape == (2, 32, 32, 3)
    assert "--model hf://ann/mine" in out


def test_a_second_push_replaces_the_first(best, user, server):
    assert user(*push(best, "ann/mine", "--private"))[0] == 0
    assert server.private == {"ann/mine"}
    (best / "denoiser").rename(best.parent / "denoiser")
    assert user(*push(best, "ann/mine"))[0] == 0
    assert not any(name.startswith("denoiser") for name in server.repositories["ann/mine"])
    assert {".gitattributes", "flow/model.safetensors"} <= server.repositories["ann/mine"].keys()
    code, _, err = user("-c", "import raypipe; raypipe.load_predictor('hf://ann/mine')", token=None)
    assert code == 1 and "ann/mine: no such repository" in err.splitlines()[-1]


def refused(result):
    code, out, err = result
    assert code == 2 and out == "" and err.count("\n") == 1, err
    return err


def test_what_fails_is_one_line(best, user, server, tmp_path):
    assert "no Hugging Face token; set HF_TOKEN" in refused(user(*push(best, "ann/mine"), token=None))
    assert "refuses the token (HTTP 401)" in refused(user(*push(best, "ann/mine"), token="hf_wrong"))
    assert "refuses the token (HTTP 403)" in refused(user(*push(best, "bob/mine")))
    nobody = f"http://127.0.0.1:{free_ports(1)[0]}"
    assert f"{nobody} cannot be reached" in refused(user(*push(best, "ann/mine"), endpoint=nobody))
    assert server.repositories == {} and server.commits == 0
    write_video(tmp_path / "clip.mp4", moving(), 8)
    generate = ("-m", "raypipe.generate", "--input", "clip.mp4", "--model")
    assert "ann/none: no such repository" in refused(user(*generate, "hf://ann/none"))
    server.repositories["ann/other"] = {"config.json": b"{}"}
    assert "hf://ann/other: not a predictor" in refused(user(*generate, "hf://ann/other"))


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["best", "mine"], "mine: must be USER/NAME"),
        (["best/flow", "ann/mine"], "best/flow: not a predictor's folder"),
        (["nowhere", "ann/mine"], "nowhere: not a predictor's folder"),
    ],
)
def test_wrong_arguments(best, monkeypatch, capsys, argv, line):
    monkeypatch.chdir(best.parent)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert main(["push", *argv]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"raypipe.checkpoint: error: {line}") and err.count("\n") == 1


def test_without_a_card_or_the_package(best, monkeypatch, capsys):
    (best / "README.md").unlink()
    assert main(["push", str(best), "ann/mine"]) == 2
    assert "has no model card (README.md); python -m raypipe.evaluate" in capsys.readouterr().err
    (best / "README.md").write_text(CARD)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["push", str(best), "ann/mine"]) == 2
    err = capsys.readouterr().err
    assert "pushing a model needs the package huggingface_hub" in err and "raypipe[hub]" in err
    with pytest.raises(ValueError, match=r"hf://ann/mine: reading it needs the package huggingface_hub"):
        raypipe.load_predictor("hf://ann/mine")
