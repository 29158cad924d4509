"""What a conversion did to the frames is stored beside the shards, through several conversions."""

import json

import numpy as np
import pytest

from raypipe import convert_to_h5
from raypipe.data.conversion.preprocessing import Preprocessing, every, read_preprocessing
from raypipe.data.shards import RemoteFolder, open_shards
from raypipe.data.video.io import write_video

OPTIONS = ("--image_size", "32", "--fit", "pad", "--grey", "--frame-stride", "5")
MADE = Preprocessing(32, "pad", True, 5)


def convert(data, out, *options):
    flags = ["--data_dir", data, "--out_dir", out, "--num-workers", 1, *options]
    return convert_to_h5.main([str(flag) for flag in flags])


@pytest.fixture
def videos(tmp_path):
    for split in ("train", "val", "test"):
        (tmp_path / "videos" / split).mkdir(parents=True)
        frames = np.random.default_rng(0).integers(0, 256, (40, 64, 96, 3), np.uint8)
        write_video(tmp_path / "videos" / split / "a.mp4", frames, fps=10)
    return tmp_path / "videos"


@pytest.mark.parametrize("layout", ["packed", "reference"])
def test_a_conversion_says_what_it_did(videos, tmp_path, layout):
    assert convert(videos, tmp_path / "out", *OPTIONS, "--layout", layout) == 0
    for split in ("train", "val", "test"):
        assert read_preprocessing(tmp_path / "out" / split) == MADE
    assert read_preprocessing(RemoteFolder(f"file://{tmp_path}/out/test")) == MADE
    assert read_preprocessing(videos / "train") is None


def test_shards_of_earlier_versions_say_it_by_their_options(videos, tmp_path):
    assert convert(videos, tmp_path / "out", *OPTIONS) == 0
    path = tmp_path / "out" / "train" / "conversion.json"
    record = json.loads(path.read_text())
    del record["preprocessing"]
    path.write_text(json.dumps(record))
    assert read_preprocessing(path.parent) == MADE


def test_shards_converted_again_keep_what_was_done_first(videos, tmp_path):
    assert convert(videos, tmp_path / "once", *OPTIONS) == 0
    assert convert(tmp_path / "once", tmp_path / "twice", "--image_size", "16", "--frame-stride", "2") == 0
    assert read_preprocessing(tmp_path / "twice" / "val") == Preprocessing(16, "pad", True, 10)
    assert open_shards(tmp_path / "twice" / "val").lengths.tolist() == [4]


def test_the_same_stride_twice_is_refused(videos, tmp_path, capsys):
    assert convert(videos, tmp_path / "once", *OPTIONS) == 0
    capsys.readouterr()
    assert convert(tmp_path / "once", tmp_path / "twice", *OPTIONS) == 2
    error = capsys.readouterr().err
    assert "--frame-stride: 5, but the shards were already converted with --frame-stride 5: 5 x 5 = every 25th" in error
    assert "omit it for every 5th frame, or convert the videos themselves with --frame-stride 25" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"preprocessing": {"size": 16, "fit": "squeeze"}}', "fit: must be one of crop, pad, not 'squeeze'"),
        ('{"preprocessing": {"size": 16, "frame_stride": "many"}}', "frame_stride: Input should be a valid integer"),
        ('{"preprocessing": {"size": 16, "frame_stride": 0}}', "frame_stride: must be at least 1"),
    ],
)
def test_a_damaged_record_is_named(tmp_path, content, message):
    (tmp_path / "conversion.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_preprocessing(tmp_path)
    assert str(tmp_path / "conversion.json") in str(error.value)
    assert "\n" not in str(error.value)


def test_in_words():
    assert str(MADE) == "padded to 32x32, grey, every 5th frame"
    assert str(Preprocessing(64)) == "cropped to 64x64, color, every frame"
    words = str(Preprocessing(64, fps=12.5, white=4095))
    assert words == "cropped to 64x64, color, 12.5 frames per second, every frame, white at 4095"
    assert [every(n) for n in (2, 3, 11, 21, 112)] == [
        f"every {word} frame" for word in ("2nd", "3rd", "11th", "21st", "112th")
    ]
