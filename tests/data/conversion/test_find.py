"""What counts as a clip."""

import numpy as np
import pytest
from PIL import Image

from raypipe.data.conversion import find
from raypipe.data.conversion.find import without_repeats
from raypipe.data.shards import ShardWriter


def find_clips(*args, **more):
    return list(find.find_clips(*args, **more).sources)


def images(folder, suffix="png", count=2):
    folder.mkdir(parents=True, exist_ok=True)
    for t in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"frame_{t}.{suffix}")


def test_clips_at_any_depth_in_natural_order(tmp_path):
    images(tmp_path / "clip_10")
    images(tmp_path / "clip_9", "jpg")
    images(tmp_path / "walking" / "left", "PNG")
    (tmp_path / "walking" / "p1.AVI").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.mp4").touch()
    (tmp_path / "empty").mkdir()
    found = [(source.name, source.kind, source.suffix) for source in find_clips(tmp_path)]
    assert found == [
        ("clip_9", "frames", ".jpg"),
        ("clip_10", "frames", ".png"),
        ("empty", "frames", ""),
        ("walking/left", "frames", ".png"),
        ("walking/p1.AVI", "video", ""),
    ]
    assert find_clips(tmp_path / "empty") == []
    with pytest.raises(ValueError, match="missing: no such folder"):
        find_clips(tmp_path / "missing")


def test_two_suffixes_in_one_folder(tmp_path):
    images(tmp_path / "a")
    images(tmp_path / "a", "jpg")
    found = find.find_clips(tmp_path)
    assert found.sources == ()
    assert found.bad == (f"{tmp_path / 'a'}: contains .jpg and .png images, left out; choose one with --extension jpg",)
    for extension in ("jpg", ".PNG"):
        assert [s.suffix for s in find_clips(tmp_path, extension)] == [f".{extension.lower().lstrip('.')}"]


def test_clips_of_shards(tmp_path):
    with ShardWriter(tmp_path / "a", clips_per_shard=2) as writer:
        for name in ("x", "y", "z"):
            writer.add(name, np.zeros((3, 8, 8, 3), np.uint8), source=f"{name}.mp4" if name != "z" else "")
    found = find_clips(tmp_path / "a", base=tmp_path)
    assert [(s.name, s.kind, s.clip, s.origin) for s in found] == [
        ("x", "shards", 0, "x.mp4"),
        ("y", "shards", 1, "y.mp4"),
        ("z", "shards", 2, "a/shard_0002.hdf5"),
    ]
    assert [s.name for s in find_clips(tmp_path)] == ["a/x", "a/y", "a/z"]
    with ShardWriter(tmp_path / "b") as writer:
        writer.add("latent", np.zeros((3, 4, 8, 8), np.float16))
    (line,) = find.find_clips(tmp_path / "b").bad
    assert "b: its shards hold frames of float16 [4, 8, 8], not uint8 [H, W, 3]" in line


def test_one_clip_in_two_forms_is_taken_once(tmp_path):
    images(tmp_path / "a")
    for name in ("a.mp4", "b.mp4", "b.avi", "c.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.mp4").touch()
    taken, repeats = without_repeats(find_clips(tmp_path))
    assert [s.name for s in taken] == ["a", "b.avi", "c.mp4", "deeper/c.mp4"]
    assert [line.split(";")[0] for line in repeats] == [
        f"{tmp_path / 'a.mp4'}: duplicate of {tmp_path / 'a'} (same clip name)",
        f"{tmp_path / 'b.mp4'}: duplicate of {tmp_path / 'b.avi'} (same clip name)",
    ]


def test_a_stamp_changes_with_the_content(tmp_path):
    images(tmp_path / "a", count=3)
    before = find_clips(tmp_path)[0].stamp
    assert before[0] == 3
    assert find_clips(tmp_path)[0].stamp == before
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "frame_1.png")
    assert find_clips(tmp_path)[0].stamp != before
