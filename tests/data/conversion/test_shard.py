"""One shard out of its sources: what is in it, what is left out and why, and what is never left behind."""

import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from raypipe.data.conversion import shard as conversion
from raypipe.data.conversion.find import find_clips
from raypipe.data.conversion.shard import Options, convert_shard, plan
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.data.shards.writer import write_index
from raypipe.data.video.io import resize
from tests.videotools import noise, patch_count, save_frames, save_video


@pytest.fixture
def clips(tmp_path):
    return tmp_path / "clips"


def task(clips, out, **options):
    """All clips in one shard."""
    tasks = plan(out, find_clips(clips).sources, Options(**{"image_size": 16, **options}))
    return conversion.Task(tasks[0].path, tuple(s for t in tasks for s in t.sources), tasks[0].options)


def contents(shards):
    return {name: shards.clip(i) for i, name in enumerate(shards.names)}


def convert(clips, out, **options):
    outcome = convert_shard(task(clips, out, **options))
    assert [path.name for path in out.iterdir()] in ([], ["shard_0001.hdf5"])  # the spool is gone
    if not outcome.rows:
        return {}, outcome
    if options.get("layout") != "published":
        write_index(out)
    return contents(open_shards(out)), outcome


def test_what_goes_where_follows_from_the_number_of_sources(clips, tmp_path):
    for i in range(35):
        save_frames(clips / str(i), noise(i, 1, 8, 8))
    sources = find_clips(clips).sources
    tasks = plan(tmp_path, sources, Options())
    assert tuple(s for t in tasks for s in t.sources) == sources
    assert [len(t.sources) for t in tasks] == [3] * 11 + [2]
    assert [len(plan(tmp_path, sources[:1] * n, Options())) for n in (1, 16, 1600, 1700, 20_000)] == [
        1,
        16,
        16,
        17,
        200,
    ]
    many = plan(tmp_path, sources[:1] * 1_000_100, Options())
    assert [t.path for t in many] == sorted(t.path for t in many)  # 10,001 shards in the order of their names


@pytest.mark.parametrize("layout", ["packed", "published"])
def test_every_kind_of_source(clips, tmp_path, layout):
    made = {"0": noise(0), "1.mkv": noise(1), "2.avi": noise(2, 40), "3/x": noise(3, 7, 16, 16)}
    save_frames(clips / "0", made["0"], "bmp")
    save_video(clips / "1.mkv", made["1.mkv"])
    save_video(clips / "2.avi", made["2.avi"])
    with ShardWriter(clips / "3") as writer:
        writer.add("x", made["3/x"])
    told = []
    outcome = convert_shard(task(clips, tmp_path / "out", layout=layout), told.append)
    assert sum(told) == outcome.frames == 5 + 5 + 40 + 7
    if layout == "packed":
        write_index(tmp_path / "out")
    shards = open_shards(tmp_path / "out")
    assert [row["clip"] for row in outcome.rows] == list(made)
    for i, frames in enumerate(made.values()):
        np.testing.assert_array_equal(shards.clip(i), resize(frames, 16))


def test_a_lossless_video_of_the_size_comes_back_exactly(clips, tmp_path):
    save_video(clips / "a.mkv", noise(0, 5, 16, 16))
    save_frames(clips / "b", noise(1, 5, 16, 16))
    found, _ = convert(clips, tmp_path / "out")
    np.testing.assert_array_equal(found["a.mkv"], noise(0, 5, 16, 16))
    np.testing.assert_array_equal(found["b"], noise(1, 5, 16, 16))


def test_stride_grey_and_pad(clips, tmp_path):
    save_video(clips / "a.mkv", noise(0, 11, 16, 16))
    save_frames(clips / "b", noise(1, 12, 16, 16))
    with ShardWriter(clips / "c") as writer:
        writer.add("x", noise(2, 13, 16, 16))
    found, _ = convert(clips, tmp_path / "out", frame_stride=5)
    for (name, content), frames in zip(found.items(), (11, 12, 13), strict=True):
        seed = {"a.mkv": 0, "b": 1, "c/x": 2}[name]
        np.testing.assert_array_equal(content, noise(seed, frames, 16, 16)[::5])
    grey, _ = convert(clips, tmp_path / "grey", grey=True)
    assert all((frames == frames[..., :1]).all() for frames in grey.values())
    save_frames(clips / "d", np.full((2, 8, 16, 3), 255, np.uint8))
    padded, _ = convert(clips, tmp_path / "padded", fit="pad")
    assert padded["d"][:, :4].max() == 0 and padded["d"][:, 4:12].min() == 255 and padded["d"][:, 12:].max() == 0


def test_short_clips_are_left_out_after_striding(clips, tmp_path):
    for frames in (9, 10, 11):
        save_frames(clips / f"{frames}", noise(0, frames, 16, 16))
    found, outcome = convert(clips, tmp_path / "out", frame_stride=3, min_length=4)
    assert list(found) == ["10", "11"]
    assert outcome.short == (f"{clips / '9'}: 3 frames",)
    assert outcome.bad == ()


def _no_video(clips):
    (clips / "bad.mp4").write_bytes(b"no video")


def _cut(clips):
    path = save_video(clips / "bad.avi", noise(0, 40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _other_size(clips):
    save_frames(clips / "bad", noise(0))
    Image.new("RGB", (9, 9)).save(clips / "bad" / "9.png")


def _corrupt(clips):
    save_frames(clips / "bad", noise(0))
    (clips / "bad" / "3.png").write_bytes((clips / "bad" / "3.png").read_bytes()[:200])


def _empty(clips):
    (clips / "bad").mkdir()


def _shard(clips):
    with ShardWriter(clips / "bad") as writer:
        writer.add("x", noise(0))
    path = clips / "bad" / "shard_0001.hdf5"
    raw = bytearray(path.read_bytes())
    place = raw.index(noise(0)[2].tobytes()[:64])
    raw[place] ^= 255
    path.write_bytes(raw)


@pytest.mark.parametrize("layout", ["packed", "published"])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_no_video, "bad.mp4: not a readable video"),
        (_cut, "bad.avi"),
        (_other_size, "9.png: is 9x9, but the frames before it are 32x24"),
        (_corrupt, "3.png: not a readable image"),
        (_empty, "bad: no "),
        (_shard, "clip x is damaged"),
    ],
)
def test_a_bad_source_is_left_out_whole(clips, tmp_path, spoil, reason, layout):
    save_frames(clips / "a", noise(1))
    spoil(clips)
    save_frames(clips / "z", noise(2))
    found, outcome = convert(clips, tmp_path / "out", layout=layout)
    assert len(outcome.bad) == 1
    assert reason in outcome.bad[0]
    assert [row["frames"] for row in outcome.rows] == [5, 5]
    for frames, seed in zip(found.values(), (1, 2), strict=True):
        np.testing.assert_array_equal(frames, resize(noise(seed), 16))


def test_of_bad_sources_alone_no_shard_is_made(clips, tmp_path):
    clips.mkdir()
    _no_video(clips)
    _empty(clips)
    found, outcome = convert(clips, tmp_path / "out")
    assert (found, len(outcome.bad), outcome.bytes, outcome.sources) == ({}, 2, 0, 2)


def test_a_wrong_count_in_a_header_is_a_note(clips, tmp_path):
    patch_count(save_video(clips / "a.avi", noise(0, 6)), 10)
    found, outcome = convert(clips, tmp_path / "out")
    assert len(found["a.avi"]) == 6
    assert outcome.bad == ()
    assert outcome.notes == (f"{clips / 'a.avi'}: its header announces 10 frames, but it contains 6",)


def test_memory_holds_a_frame_not_a_shard(clips, tmp_path):
    """150 MB of frames; what is not backed by the spool file must stay far below that."""
    save_frames(clips / "a", np.zeros((2, 256, 256, 3), np.uint8))
    for t in range(2, 800):
        (clips / "a" / f"{t}.png").hardlink_to(clips / "a" / "0.png")
    code = f"""
        import resource
        from pathlib import Path
        from raypipe.data.conversion.shard import Options, convert_shard, plan
        from raypipe.data.conversion.find import find_clips
        sources = find_clips(Path({str(clips)!r})).sources
        (task,) = plan(Path({str(tmp_path / "out")!r}), sources, Options(image_size=256))
        peak = 0
        def look(frames):
            global peak
            anonymous = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
            peak = max(peak, int(anonymous[0].split()[1]))
        look(0)
        first = peak
        print(convert_shard(task, look).frames, (peak - first) // 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    frames, grown = map(int, done.stdout.split())
    assert frames == 800
    assert grown < 40


@pytest.mark.parametrize("layout", ["packed", "published"])
@pytest.mark.parametrize("megabytes", [0.3, 1.9])
def test_a_full_disk_is_one_line_and_leaves_nothing(clips, tmp_path, layout, megabytes):
    """A limit on the size of files stands in for the disk: the spool file hits the first, the shard the second."""
    if layout == "published" and megabytes > 1:
        pytest.skip("compressed, it is not much larger than its spool")
    for i in range(4):
        save_frames(clips / str(i), noise(i, 3, 200, 200))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # 12 frames of 224 x 224 x 3: 1.8 MB, and a header before them in the shard.
    bytes_allowed = int(megabytes * 1e6) if megabytes < 1 else 12 * 224 * 224 * 3 + 500
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_allowed, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"shard_0001\.hdf5: cannot be written \(") as error:
            convert_shard(task(clips, tmp_path / "out", image_size=224, layout=layout))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert convert_shard(task(clips, tmp_path / "out", image_size=224, layout=layout)).frames == 12
