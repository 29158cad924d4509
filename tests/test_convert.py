"""The command: what it makes, and what it says of bad input."""

import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from raypipe import convert_to_h5
from raypipe.data.shards import open_shards
from raypipe.data.videos import resize


def moving(seed, frames=5, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def save_frames(folder, frames):
    folder.mkdir(parents=True)
    for t, image in enumerate(frames):
        Image.fromarray(image).save(folder / f"{t}.png")


def save_video(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def videos(tmp_path):
    """Two folders of frames and a video in train, one of each in val and test."""
    root = tmp_path / "videos"
    save_frames(root / "train" / "0", moving(0))
    save_frames(root / "train" / "1", moving(1, frames=7))
    save_video(root / "train" / "2.mkv", moving(2))
    for split in ("val", "test"):
        save_frames(root / split / "0", moving(3))
        save_video(root / split / "1.mkv", moving(4))
    return root


def convert(videos, out, *flags):
    return convert_to_h5.main(
        ["--data_dir", str(videos), "--out_dir", str(out), "--image_size", "16", "--num-workers", "1", *flags]
    )


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_frames_and_videos_become_shards(videos, tmp_path, capsys):
    assert convert(videos, tmp_path / "out") == 0
    train = open_shards(tmp_path / "out" / "train")
    assert train.names == ["0", "1", "2.mkv"]
    for i, frames in enumerate([moving(0), moving(1, frames=7), moving(2)]):
        np.testing.assert_array_equal(train.clip(i), resize(frames, 16))
    out = capsys.readouterr().out
    assert [line.split()[:3] for line in out.splitlines()[1:4]] == [
        ["train", "3", "17"],
        ["val", "2", "10"],
        ["test", "2", "10"],
    ]
    assert f"python -m raypipe.train --run-name f-01-nll --dataset.root {tmp_path / 'out'} --dataset.name out" in out


def test_the_number_of_workers_does_not_matter(videos, tmp_path):
    assert convert(videos, tmp_path / "one") == 0
    assert convert(videos, tmp_path / "two", "--num-workers", "2") == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_finished_splits_are_kept(videos, tmp_path, capsys):
    convert(videos, tmp_path / "out")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "val" / "index.parquet").unlink()
    capsys.readouterr()
    assert convert(videos, tmp_path / "out") == 0
    assert capsys.readouterr().err.count("finished already, kept") == 2
    assert contents(tmp_path / "out") == before
    assert convert(videos, tmp_path / "out", "--image_size", "32") == 2
    assert "holds frames of [16, 16, 3]" in capsys.readouterr().err


def test_bad_sources_are_listed_and_good_ones_kept(videos, tmp_path, capsys):
    (videos / "train" / "0" / "3.png").write_bytes(b"no image")
    (videos / "train" / "3.mp4").write_bytes(b"no video")
    assert convert(videos, tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "2 unreadable, left out" in err
    assert "0/3.png: not a readable image" in err
    assert "3.mp4: not a readable video" in err
    assert open_shards(tmp_path / "out" / "train").names == ["1", "2.mkv"]
    assert convert(videos, tmp_path / "other", "--skip-bad") == 0


def test_a_split_of_bad_sources_alone_is_not_made(videos, tmp_path, capsys):
    for path in (videos / "val" / "0").iterdir():
        path.write_bytes(b"no image")
    (videos / "val" / "1.mkv").write_bytes(b"no video")
    assert convert(videos, tmp_path / "out") == 1
    assert not (tmp_path / "out" / "val").exists()
    assert "without val" in capsys.readouterr().err


def _missing(videos):
    return videos / "missing"


def _no_splits(videos):
    return videos / "train"


def _empty_split(videos):
    (videos / "empty" / "train").mkdir(parents=True)
    return videos / "empty"


@pytest.mark.parametrize(
    ("where", "flags", "message"),
    [
        (_missing, [], "no such folder; --data_dir must hold"),
        (_no_splits, [], "holds none of train/, val/, test/"),
        (_empty_split, [], "train: no clips found"),
        (Path, ["--image_size", "20"], "--image_size: must be a multiple of 8 from 16 on, not 20"),
        (Path, ["--image_size", "big"], "--image_size"),
        (Path, ["--num-workers", "0"], "--num-workers: must be at least 1"),
        (Path, ["--imagesize"], "unrecognized arguments"),
    ],
)
def test_bad_input_is_one_line(videos, tmp_path, capsys, where, flags, message):
    assert convert(where(videos), tmp_path / "out", *flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("raypipe.convert_to_h5: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_no_torn_file(videos, tmp_path):
    save_frames(tmp_path / "long", moving(0, frames=40, height=256, width=256))
    for i in range(60):
        (videos / "train" / f"long{i}").symlink_to(tmp_path / "long")
    command = [sys.executable, "-m", "raypipe.convert_to_h5", "--data_dir", videos, "--out_dir", tmp_path / "out"]
    process = subprocess.Popen([*map(str, command), "--num-workers", "2"], stderr=subprocess.PIPE, text=True)
    shown = ""
    while " 1/63 " not in shown:  # the first clip is read, most are not
        letter = process.stderr.read(1)
        assert letter, shown
        shown += letter
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert contents(tmp_path / "out") == {}


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        convert_to_h5.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for flag in ("--data_dir", "--out_dir", "--image_size", "--extension", "--num-workers", "--skip-bad"):
        assert flag in text
