"""The README's three commands for trees of videos: conversion, a short training with the tree's config, generation.

tests/test_readme_commands.py runs every command of the README, but only `videos` goes beyond its conversion there.
"""

import shlex
from dataclasses import dataclass

import av
import numpy as np
import pytest

from raypipe import convert_to_h5, generate, train
from raypipe.data.conversion.preprocessing import Preprocessing
from raypipe.data.shards import open_shards
from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.run import keep_best
from raypipe.forecast.clip import read_clip
from raypipe.forecast.manifest import read_manifest
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace
from tests.raytools import ROOT, flags, outcome, save_autoencoder
from tests.readmetools import COMMANDS, make_videos

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long, pytest.mark.usefixtures("two_cpus")]

CONVERT = "python -m raypipe.convert_to_h5 "
NEXT = "next: python -m raypipe.train "
SMALL = {
    "autoencoder.width": 8,
    "autoencoder.steps": 4,
    "autoencoder.batch_size": 4,
    "model.inner_dim": 16,
    "model.depth": 1,
    "model.mid_depth": 1,
    "model.num_heads": 2,
    "train.steps": 4,
    "train.batch_size": 2,
    "train.warmup_steps": 1,
}
"""Sizes that make a training short; all else is the config's."""
FRAMES = 3


@dataclass(frozen=True)
class Tree:
    """A tree of `make_videos`.

    data: its folder. config: its config file, None for the defaults. made: what its command does to the frames. clips:
    number of clips of each split. raw: file of the tree from which a prediction starts. stored: split and clip that
    hold its frames. rate: frames per second of the prediction.
    """

    data: str
    config: str | None
    made: Preprocessing
    clips: dict[str, int]
    raw: str
    stored: tuple[str, str]
    rate: float


TREES = [
    Tree(
        "KTH", "kth.yaml", Preprocessing(64, grey=True), {"train": 4, "val": 1, "test": 2},
        "person21_boxing_d1_uncomp.mp4", ("test", "person21_boxing_d1"), 8,
    ),
    Tree(
        "CLEVRER", "clevrer.yaml", Preprocessing(128, frame_stride=5), {"train": 4, "val": 2, "test": 2},
        "video_test/1.mp4", ("test", "1.mp4"), 8 / 5,
    ),
    Tree(
        "flat", None, Preprocessing(64), {"train": 8, "val": 1, "test": 1},
        "person3.mp4", ("train", "person3.mp4"), 8,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("trees")
    make_videos(made)
    return made


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: tree.data)
def test_from_videos_to_a_prediction(tree, folder, capsys):
    (command,) = (c for c in COMMANDS if c.startswith(CONVERT) and f"--data_dir {tree.data} " in c)
    argv = shlex.split(command.removeprefix(CONVERT))
    assert outcome(convert_to_h5.main, convert_to_h5.PROG, [*argv, "--num-workers", 1]) == 0
    shards = {split: open_shards(folder / argv[argv.index("--out_dir") + 1] / split) for split in tree.clips}
    assert {split: len(each) for split, each in shards.items()} == tree.clips

    proposed = capsys.readouterr().out.splitlines()[-1]
    assert proposed.startswith(NEXT)
    config = ["--config", ROOT / "experiments/configs" / tree.config] if tree.config else []
    argv = [*shlex.split(proposed.removeprefix(NEXT)), *config, "--storage", folder / "storage", "--name", tree.data]
    # Starting a group of workers takes most of the time, so only one tree trains its autoencoder as well.
    made = {"autoencoder.path": str(save_autoencoder(folder / "autoencoder"))} if tree.config else {}
    assert outcome(train.main, train.PROG, [*argv, *flags(SMALL | made)]) == 0, capsys.readouterr().err

    workspace = Workspace(folder / "storage", tree.data)
    flow = Combination("f-01-nll", None, "constant", "f-01-nll", beta=1.0, residual_std=(0.1,) * 4)
    keep_best(ExperimentData(workspace.experiment(), workspace), flow)
    manifest = read_manifest(workspace.best)
    assert manifest.preprocessing == tree.made

    capsys.readouterr()
    argv = ["--model", workspace.folder, "--input", f"{tree.data}/{tree.raw}", "--output", "out.mp4"]
    argv += ["--frames", FRAMES]
    assert outcome(generate.main, generate.PROG, argv) == 0, capsys.readouterr().err
    assert f"frames {tree.made} (as the model's training videos)\n" in capsys.readouterr().out
    with av.open("out.mp4") as container:
        assert float(container.streams.video[0].average_rate) == tree.rate
        assert sum(1 for _ in container.decode(video=0)) == manifest.num_input_frames + FRAMES

    # The frames that the model is given are those of the shards: same stride, colors and size.
    split, name = tree.stored
    given = read_clip(folder / tree.data / tree.raw, manifest, FRAMES)
    stored = shards[split].clip(shards[split].names.index(name))
    np.testing.assert_array_equal(given.frames, stored[: manifest.num_input_frames + FRAMES])
