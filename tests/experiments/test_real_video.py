"""Real videos as a dataset, split by time; the pipeline itself is test_pipeline's."""

import sys

import numpy as np
import pytest

from raypipe.common.errors import UserError
from raypipe.data.shards import open_shards
from raypipe.search import records
from raypipe.workspace.layout import Workspace
from tests.scripts import load_script


@pytest.fixture
def real_video(monkeypatch):
    monkeypatch.setitem(sys.modules, "pipeline", load_script("pipeline"))
    return load_script("real_video")


@pytest.mark.parametrize("name", ["carphone", "bikes", "bigbuckbunny"])
def test_the_videos_come_with_the_test_requirements(real_video, name):
    assert real_video.video(name).is_file()


def test_videos_may_be_files_of_different_names(real_video, tmp_path):
    (tmp_path / "bikes.mp4").touch()
    assert real_video.video(str(tmp_path / "bikes.mp4")) == tmp_path / "bikes.mp4"
    for videos, message in (
        ([str(tmp_path / "none.mp4")], "--videos: no file '.*none.mp4', and none of carphone, bikes, bigbuckbunny"),
        (["bikes", str(tmp_path / "bikes.mp4")], "--videos: two have the same name"),
    ):
        with pytest.raises(UserError, match=message):
            real_video.main(["--videos", *videos, "--storage", str(tmp_path)])


def test_the_splits_follow_one_another_in_time(real_video, tmp_path):
    frames = np.arange(120, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    for _ in range(2):  # a second run keeps what the first one wrote
        real_video.write_shards(tmp_path, "street", frames)
    found = {split: open_shards(tmp_path / split) for split in ("train", "val", "test")}
    assert {split: shards.lengths.tolist() for split, shards in found.items()} == {
        "train": [24, 24, 24],
        "val": [24],
        "test": [24],
    }
    clips = [shards.clip(i) for shards in found.values() for i in range(len(shards))]
    assert np.array_equal(np.concatenate(clips), frames)


def test_the_chosen_forecast_is_set_against_the_last_frame_on_test(real_video, tmp_path):
    workspace = Workspace(tmp_path, "real-street")

    def row(split, chosen, baseline, value):
        scores = dict.fromkeys(real_video.METRICS, value)
        return {"split": split, "chosen": chosen, "baseline": baseline, "decoding": "copied-0.2", **scores}

    rows = [row("validation", True, None, 0.1), row("test", True, None, 0.6), row("test", False, "persistence", 1.0)]
    records.write_rows(workspace.evaluation / "combinations.parquet", rows)
    assert real_video.compared(workspace) == {
        "chosen": dict.fromkeys(real_video.METRICS, 0.6),
        "last": dict.fromkeys(real_video.METRICS, 1.0),
        "decoding": "copied-0.2",
    }
