"""The command: what it makes, what it keeps, and what it says of bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from raypipe import convert_to_h5
from raypipe.data.conversion import resuming
from raypipe.data.shards import ReferenceShards, ShardWriter, open_shards
from raypipe.data.video.io import resize
from tests.videotools import noise, patch_count, real_video, save_frames, save_video

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """Processes of this machine, even if a cluster happens to be up."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture
def videos(tmp_path):
    """Two folders of frames and a video in train, one of each in val and test."""
    root = tmp_path / "videos"
    save_frames(root / "train" / "0", noise(0))
    save_frames(root / "train" / "1", noise(1, frames=7))
    save_video(root / "train" / "2.mkv", noise(2))
    for split in ("val", "test"):
        save_frames(root / split / "0", noise(3))
        save_video(root / split / "1.mkv", noise(4))
    return root


def arguments(videos, out, *flags):
    return ["--data_dir", str(videos), "--out_dir", str(out), "--image_size", "16", "--num-workers", "1", *flags]


def convert(videos, out, *flags):
    return convert_to_h5.main(arguments(videos, out, *flags))


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def written(root):
    """When each shard was written, and where: a number of a removed file may be given out again."""
    stats = {path.relative_to(root).as_posix(): path.stat() for path in root.rglob("*.hdf5")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def names(out):
    return {split.name: open_shards(split).names for split in sorted(out.iterdir()) if split.is_dir()}


def counts(out):
    return {name: len(clips) for name, clips in names(out).items()}


def test_frames_and_videos_become_shards(videos, tmp_path, capsys):
    assert convert(videos, tmp_path / "out") == 0
    train = open_shards(tmp_path / "out" / "train")
    assert train.names == ["0", "1", "2.mkv"]
    assert train.sources == ["train/0", "train/1", "train/2.mkv"]
    for i, frames in enumerate([noise(0), noise(1, frames=7), noise(2)]):
        np.testing.assert_array_equal(train.clip(i), resize(frames, 16))
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["split", "clips", "frames", "MB", "left", "out"]
    assert [(*line.split()[:3], line.split()[-1]) for line in lines[2:5]] == [
        ("train", "3", "17", "0"),
        ("val", "2", "10", "0"),
        ("test", "2", "10", "0"),
    ]
    assert len({len(line) for line in lines[:5]}) == 1
    assert (
        f"python -m raypipe.train --run-name f-01-nll --dataset.root {tmp_path / 'out'} --dataset.name out" in lines[-1]
    )
    assert re.search(r"37/37 .*frame/s, 7/7 clips", captured.err)


@pytest.mark.parametrize(
    ("name", "frames"),
    [("bikes.mp4", 250), ("carphone_pristine.mp4", 120), ("carphone_distorted.mp4", 120), ("bigbuckbunny.mp4", 132)],
)
def test_real_videos_keep_every_frame(tmp_path, name, frames):
    (tmp_path / "videos" / "train").mkdir(parents=True)
    (tmp_path / "videos" / "train" / name).symlink_to(real_video(name))
    assert convert(tmp_path / "videos", tmp_path / "out", "--image_size", "64") == 0
    shards = open_shards(tmp_path / "out" / "train")
    with av.open(str(real_video(name))) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames == shards.lengths[0]
    clip = shards.clip(0).astype(int)
    assert clip.std() > 20
    assert 0.3 < np.abs(np.diff(clip, axis=0)).mean() < 40  # it moves, and is no noise


def test_the_number_of_workers_does_not_matter(videos, tmp_path):
    (videos / "train" / "0" / "3.png").write_bytes(b"no image")
    for workers in (1, 2, 3):
        assert convert(videos, tmp_path / str(workers), "--num-workers", str(workers)) == 1
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


@pytest.mark.cluster
@pytest.mark.slow
def test_tasks_of_ray_write_the_same_bytes(two_cpus, videos, tmp_path, capsys):
    """On the Ray that this process has joined; none is started, and none is stopped."""
    (videos / "train" / "0" / "3.png").write_bytes(b"no image")
    assert convert(videos, tmp_path / "here") == 1
    capsys.readouterr()
    assert convert(videos, tmp_path / "ray", "--num-workers", "2") == 1
    assert ray.is_initialized()
    assert "0/3.png: not a readable image" in capsys.readouterr().err
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


def test_reference_and_packed_hold_the_same(videos, tmp_path):
    assert convert(videos, tmp_path / "packed") == 0
    assert convert(videos, tmp_path / "reference", "--layout", "reference") == 0
    for split in ("train", "val", "test"):
        ours, theirs = open_shards(tmp_path / "packed" / split), open_shards(tmp_path / "reference" / split)
        assert isinstance(theirs, ReferenceShards)
        assert theirs.lengths.tolist() == ours.lengths.tolist()
        for i in range(len(ours)):
            np.testing.assert_array_equal(theirs.clip(i), ours.clip(i))
        rows = pq.read_table(tmp_path / "reference" / split / "manifest.parquet").to_pylist()
        assert [row["clip"] for row in rows] == ours.names
        assert [f"{Path(row['shard']).stem}/{row['group']}" for row in rows] == theirs.names
    before = contents(tmp_path / "reference")
    assert convert(videos, tmp_path / "reference", "--layout", "published") == 0  # the other name, resumes the same
    assert contents(tmp_path / "reference") == before


@pytest.mark.parametrize("layout", ["packed", "published"])
def test_shards_are_packed_anew(videos, tmp_path, layout):
    assert convert(videos, tmp_path / "first", "--image_size", "24", "--layout", layout) == 0
    assert convert(tmp_path / "first", tmp_path / "second", "--frame-stride", "2") == 0
    first, second = open_shards(tmp_path / "first" / "train"), open_shards(tmp_path / "second" / "train")
    assert second.names == first.names
    for i in range(3):
        np.testing.assert_array_equal(second.clip(i), resize(first.clip(i), 16)[::2])
    if layout == "packed":
        assert second.sources == first.sources


def test_official_layouts_and_shares(tmp_path):
    flat, clevrer = tmp_path / "kth", tmp_path / "clevrer"
    for person in range(1, 26):
        save_video(flat / "boxing" / f"person{person:02d}_boxing_d1_uncomp.avi", noise(person, 2, 16, 16))
    assert convert(flat, tmp_path / "a", "--dataset", "kth", "--grey") == 0
    assert counts(tmp_path / "a") == {"train": 16, "val": 4, "test": 5}
    assert convert(flat, tmp_path / "b", "--split", "0.6,0.2,0.2", "--group-by", r"person(\d)") == 0
    people = {split: {name.split("person")[1][0] for name in found} for split, found in names(tmp_path / "b").items()}
    assert sorted(digit for digits in people.values() for digit in digits) == ["0", "1", "2"]
    for split, number in (("train", 0), ("train", 1), ("validation", 10_000), ("test", 15_000)):
        path = clevrer / f"video_{split}" / f"video_{number // 1000:02d}" / f"video_{number:05d}.avi"
        save_video(path, noise(number, 2, 16, 16))
    assert convert(clevrer, tmp_path / "c", "--dataset", "clevrer") == 0
    assert counts(tmp_path / "c") == {"train": 2, "val": 1, "test": 1}


def test_finished_splits_are_kept(videos, tmp_path, capsys):
    convert(videos, tmp_path / "out")
    before, standing = contents(tmp_path / "out"), written(tmp_path / "out")
    (tmp_path / "out" / "val" / "index.parquet").unlink()
    (tmp_path / "out" / "test" / "shard_0002.hdf5").unlink()
    capsys.readouterr()
    assert convert(videos, tmp_path / "out") == 0
    assert capsys.readouterr().err.count("already finished, kept") == 1
    assert contents(tmp_path / "out") == before
    now = written(tmp_path / "out")
    assert [name for name in now if now[name] != standing[name]] == ["test/shard_0002.hdf5"]


@pytest.mark.parametrize("finished", [True, False])
def test_other_options_are_refused(videos, tmp_path, capsys, finished):
    convert(videos, tmp_path / "out")
    if not finished:
        for split in ("train", "val", "test"):
            (tmp_path / "out" / split / "index.parquet").unlink()
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert convert(videos, tmp_path / "out", "--image_size", "32", "--grey") == 2
    err = capsys.readouterr().err
    assert "out/train: begun with --image-size 16 (now 32), --grey False (now True)" in err
    assert err.count("\n") == 1
    assert contents(tmp_path / "out") == before


def test_changed_sources_are_noticed(videos, tmp_path, capsys):
    convert(videos, tmp_path / "out")
    standing = written(tmp_path / "out")
    save_video(videos / "train" / "2.mkv", noise(9))
    capsys.readouterr()
    assert convert(videos, tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "out/train: finished, but its sources have changed (1 changed, for example 2.mkv)" in err
    (tmp_path / "out" / "train" / "index.parquet").unlink()
    assert convert(videos, tmp_path / "out") == 0
    np.testing.assert_array_equal(open_shards(tmp_path / "out" / "train").clip(2), resize(noise(9), 16))
    now = written(tmp_path / "out")
    assert [name for name in now if now[name] != standing[name]] == ["train/shard_0003.hdf5"]


def test_what_another_program_made_is_not_touched(videos, tmp_path, capsys):
    with ShardWriter(tmp_path / "out" / "val") as writer:
        writer.add("x", noise(0))
    before = contents(tmp_path / "out")
    assert convert(videos, tmp_path / "out") == 2
    assert "index.parquet: not written by this command" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


def test_bad_sources_are_listed_and_good_ones_kept(videos, tmp_path, capsys):
    (videos / "train" / "0" / "3.png").write_bytes(b"no image")
    (videos / "train" / "3.mp4").write_bytes(b"no video")
    save_video(videos / "train" / "1.avi", noise(8))  # beside the folder 1
    patch_count(save_video(videos / "val" / "2.avi", noise(5)), 9)
    save_frames(videos / "test" / "2", noise(5, frames=2))
    assert convert(videos, tmp_path / "out", "--min-length", "3") == 1
    captured = capsys.readouterr()
    err = captured.err
    assert "3 unreadable or duplicate, left out:\n" in err
    assert "0/3.png: not a readable image\n" in err
    assert "3.mp4: not a readable video" in err
    assert "1.avi: duplicate of" in err
    assert "1 shorter than 3 frames, left out:\n" in err
    assert "3 kept despite a problem:\n" in err  # also two clips of test that are in val
    assert names(tmp_path / "out")["train"] == ["1", "2.mkv"]
    assert [line.split()[-1] for line in captured.out.splitlines()[2:5]] == ["3", "0", "1"]
    assert "11 sources found: 7 packed, 4 left out; 3 odd\n" in captured.out
    # A second run says the same, though it reads nothing.
    assert convert(videos, tmp_path / "out", "--min-length", "3") == 1
    again = capsys.readouterr()
    assert again.out == captured.out
    assert again.err.endswith(err[err.index("3 unreadable") :])
    assert convert(videos, tmp_path / "out", "--min-length", "3", "--skip-bad") == 0


def test_a_split_of_bad_sources_alone_is_not_made(videos, tmp_path, capsys):
    for path in (videos / "val" / "0").iterdir():
        path.write_bytes(b"no image")
    (videos / "val" / "1.mkv").write_bytes(b"no video")
    assert convert(videos, tmp_path / "out") == 1
    assert not (tmp_path / "out" / "val").exists()
    assert "no val split" in capsys.readouterr().err
    assert convert(videos, tmp_path / "out", "--skip-bad") == 1


def test_nothing_but_bad_sources(tmp_path, capsys):
    (tmp_path / "videos" / "train").mkdir(parents=True)
    (tmp_path / "videos" / "train" / "1.mkv").write_bytes(b"no video")
    assert convert(tmp_path / "videos", tmp_path / "out", "--skip-bad") == 2
    err = capsys.readouterr().err
    assert "1.mkv: not a readable video" in err
    assert "no usable clip, nothing was written" in err
    assert not (tmp_path / "out" / "train").exists()


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
        (_missing, [], "no such folder; --data_dir must be a folder with"),
        (_no_splits, [], "contains none of train/, val/, test/"),
        (_empty_split, [], "train: no clips found"),
        (Path, ["--image_size", "20"], "--image_size: must be a multiple of 8, at least 16, not 20"),
        (Path, ["--image_size", "big"], "--image_size"),
        (Path, ["--num-workers", "0"], "--num-workers: must be at least 1"),
        (Path, ["--frame-stride", "0"], "--frame-stride: must be at least 1"),
        (Path, ["--min-length", "-1"], "--min-length: must be at least 1"),
        (Path, ["--fit", "stretch"], "--fit"),
        (Path, ["--split", "0.8,0.1,0.1"], "is already divided"),
        (_no_splits, ["--split", "0.8,0.1"], "--split: must be three numbers"),
        (_no_splits, ["--split", "0.8,0.1,0.2"], "--split: fractions must be at least 0 and add up to 1"),
        (_no_splits, ["--split", "nan,0.1,0.2"], "--split: fractions must be at least 0 and add up to 1"),
        (_no_splits, ["--split", "0.8,0.1,0.1", "--group-by", "(["], "--group-by: not a regular expression"),
        (Path, ["--group-by", "x"], "--group-by: works only with --split"),
        (_no_splits, ["--dataset", "kth", "--split", "0.8,0.1,0.1"], "--dataset kth already defines the splits"),
        (Path, ["--dataset", "kth"], "not a KTH file name"),
        (Path, ["--dataset", "clevrer"], "contains none of CLEVRER's folders video_train/"),
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


def test_results_must_not_lie_among_the_sources(videos, tmp_path, capsys):
    assert convert(videos, videos) == 2
    assert "train contains source videos" in capsys.readouterr().err
    assert convert(videos / "train", videos / "train" / "out", "--split", "0.4,0.3,0.3") == 2
    assert "is inside --data_dir" in capsys.readouterr().err
    assert convert(videos, videos / "shards") == 0  # beside train/, val/ and test/, where nobody looks


@pytest.fixture
def long(tmp_path):
    """48 slow clips, three to a shard."""
    frames = save_frames(tmp_path / "frames", noise(0, 40, 192, 192))
    (tmp_path / "long" / "train").mkdir(parents=True)
    for i in range(48):
        (tmp_path / "long" / "train" / f"{i}").symlink_to(frames)
    return tmp_path / "long"


def start(long, out, workers=2):
    command = [sys.executable, "-m", "raypipe.convert_to_h5", *arguments(long, out, "--num-workers", str(workers))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_records(process, folder, count):
    until = time.monotonic() + 120
    while len(list(folder.glob(".shard_*.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def group_is_gone(group):
    until = time.monotonic() + 20
    while time.monotonic() < until:
        states = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                states.append(fields)
        if not states:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_was_cut_off_goes_on(long, tmp_path, workers, number):
    train = tmp_path / "out" / "train"
    process = start(long, tmp_path / "out", workers)
    wait_for_records(process, train, 3)
    os.killpg(process.pid, number)
    err = process.communicate(timeout=60)[1]
    assert group_is_gone(process.pid)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith("interrupted; run the same command again to resume\n")
        assert "Traceback" not in err
        assert list(train.glob("*.tmp")) == list(train.glob(".*.tmp")) == []
    records = {path.name[1:].replace(".json", ".hdf5") for path in train.glob(".shard_*.json")}
    standing = written(train)
    assert 3 <= len(records) < 16
    assert not (train / "index.parquet").exists()
    assert convert(long, tmp_path / "out") == 0
    assert {name for name, stat in written(train).items() if standing.get(name) == stat} == records
    assert {path.name for path in train.iterdir()} == {*written(train), "index.parquet", "conversion.json"}
    assert convert(long, tmp_path / "whole") == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")


def test_a_killed_worker_is_one_line(long, tmp_path):
    process = start(long, tmp_path / "out")
    wait_for_records(process, tmp_path / "out" / "train", 1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    worker = next(pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(int(worker), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert group_is_gone(process.pid)
    last = err.splitlines()[-1]
    assert last.startswith("raypipe.convert_to_h5: error: ")
    assert "shard_" in last and "killed by SIGKILL" in last and "run the same command again to resume" in last
    assert "Traceback" not in err
    assert list((tmp_path / "out" / "train").glob(".*.tmp")) == []
    assert convert(long, tmp_path / "out") == 0


def test_a_second_run_at_the_same_time_is_refused(long, tmp_path, capsys):
    process = start(long, tmp_path / "out")
    wait_for_records(process, tmp_path / "out" / "train", 1)
    assert convert(long, tmp_path / "out") == 2
    assert "another conversion is writing to" in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)


def test_a_disk_that_fills_up_is_one_line(videos, tmp_path, capsys, monkeypatch):
    class Room:
        f_bavail, f_frsize = 1, 4096

    monkeypatch.setattr("os.statvfs", lambda path: Room)
    assert convert(videos, tmp_path / "out", "--image_size", "64") == 2
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert "shard_0001.hdf5: cannot be written (No space left on device)" in last
    assert list((tmp_path / "out").rglob("*.hdf5")) == list((tmp_path / "out").rglob("*.tmp")) == []
    monkeypatch.undo()
    assert convert(videos, tmp_path / "out", "--image_size", "64") == 0


def test_a_damaged_record_is_named(videos, tmp_path, capsys):
    convert(videos, tmp_path / "out")
    path = tmp_path / "out" / "train" / resuming.RECORD
    json.loads(path.read_text())
    path.write_text("{")
    capsys.readouterr()
    assert convert(videos, tmp_path / "out") == 2
    assert f"{path}: damaged; delete" in capsys.readouterr().err


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        convert_to_h5.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for action in convert_to_h5.make_parser()._actions:
        assert action.help
        assert all(option in text for option in action.option_strings)
