"""Inputs as people have them: each is read, or named with the reason; none is lost in silence.

Every case is converted, and its clips are also read by `generate`: one reader serves both.
"""

import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
from PIL import Image

from raypipe import convert_to_h5
from raypipe.data.shards import open_shards
from raypipe.forecast.clip import read_clip
from raypipe.forecast.manifest import Manifest
from tests.data import odd_inputs as make

MANIFEST = Manifest("f", 1.0, 1.0, 1, 1, 64, 1, "x")


@dataclass(frozen=True)
class Case:
    """An input. make: writes it below a folder. frames: of each clip of train, by name. says: parts of the messages.
    code: exit code. pixel: value of the corner of the first frame, if it matters."""

    make: object
    frames: dict[str, int]
    says: tuple[str, ...] = ()
    code: int = 0
    flags: tuple[str, ...] = ()
    pixel: tuple[int, int, int] | None = None


def v(name, codec="libx264", pix="yuv420p", **more):
    """A video file in train/."""
    return Case(lambda root: make.video(root / "train" / name, codec=codec, pix=pix, **more), {name: 16})


def stills(pixel=None, says=(), flags=(), frames=None, **more):
    """A folder of frames."""
    drawn = make.clip(6) if frames is None else frames
    return Case(lambda root: make.images(root / "train/a", drawn, **more), {"a": len(drawn)}, says, 0, flags, pixel)


def film(name, frames=6, **save):
    """A file of several frames, in a folder of its own, flat in train/, and beside a video."""

    def write(root):
        for place in (f"own/{name}", f"flat-{name}", f"beside/{name}"):
            make.film(root / "train" / place, **save)
        make.video(root / "train/beside/v.mp4")

    return Case(write, {f"own/{name}": frames, f"flat-{name}": frames, f"beside/{name}": frames, "beside/v.mp4": 16})


def with_video(write, *says, code=1, frames=None):
    """Something unreadable beside a video, which is packed all the same."""

    def both(root):
        make.video(root / "train/v/v.mp4")
        write(root / "train")

    return Case(both, frames or {"v/v.mp4": 16}, says, code)


def _damaged_frame(train):
    make.images(train / "a")
    (train / "a/003.png").write_bytes((train / "a/003.png").read_bytes()[:100])


def _other_size(train):
    make.images(train / "a")
    Image.new("RGB", (9, 9)).save(train / "a/009.png")


def _two_formats(train):
    make.images(train / "a")
    make.images(train / "a", name="{:03d}.jpg")


def _raw(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _cut(train):
    path = make.video(train / "b.mkv", codec="ffv1", pix="bgr0")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _two_cameras(root):
    make.images(root / "train/a", name="left_{:03d}.png")
    make.images(root / "train/a", name="right_{:03d}.png")


def _mixed_jpegs(root):
    make.images(root / "train/a", make.clip(3), "{}.jpg")
    for old, new in (("0.jpg", "0.jpeg"), ("1.jpg", "1.JPG")):
        (root / "train/a" / old).rename(root / "train/a" / new)


def _named_thumbs(train):
    make.images(train / "thumbs", make.clip(1), "v.jpg")


def _same(root):
    make.video(root / "train/a.mp4")
    make.video(root / "test/b.mp4")


def _rates(root):
    make.video(root / "train/a.mp4", make.clip(30), rate=30)
    make.video(root / "train/b.mp4", make.clip(60), rate=60)


def _split_names(root):
    for name in ("Train", "video_validation", "testing"):
        make.video(root / name / f"{name}.mp4", make.clip(8))


def _with_tail(name, **more):
    def write(root):
        make.append(make.video(root / "train" / name, **more))

    return write


def _deep(root):
    make.images(root / "train/a", make.clip()[..., 0].astype(np.uint16) * 16)


def _png_tail(root):
    make.images(root / "train/a")
    for path in (root / "train/a").iterdir():
        make.append(path)


LUMA = make.clip(6)[..., 0]
HDF5 = b"\x89HDF\r\n\x1a\n"
GREY = (30, 30, 30)
BLACK = (0, 0, 0)

CASES = {
    # videos
    "mp4": v("a.mp4"),
    "MTS": Case(lambda root: make.renamed(root, "b.ts", "b.MTS"), {"b.MTS": 16}),
    "video without suffix": Case(lambda root: make.renamed(root, "b.mp4", "b"), {"b": 16}),
    "video with a wrong suffix": Case(lambda root: make.renamed(root, "b.mp4", "b.jpg"), {"b.jpg": 16}),
    "mov": v("a.mov"),
    "mkv": v("a.mkv", "ffv1", "bgr0"),
    "webm": v("a.webm", "libvpx-vp9"),
    "avi": v("a.avi", "mpeg4"),
    "mpg": v("a.mpg", "mpeg2video", rate=25),
    "flv": v("a.flv", "flv"),
    "wmv": v("a.wmv", "wmv2"),
    "ogv": v("a.mkv.OGV", "libvpx", format="ogg"),
    "y4m": v("a.y4m", "wrapped_avframe", format="yuv4mpegpipe"),
    "h264 stream": v("a.h264"),
    "mxf": v("a.mxf", "mpeg2video", rate=25),
    "3gp": v("a.3gp"),
    "colon in a name": v("16:30:05.mp4"),
    "odd characters": v("a %03d [x] #1 'q' é\n.mp4"),
    "10 bits": v("a.mkv", "ffv1", "yuv420p10le"),
    "grey video": v("a.mkv", "ffv1", "gray"),
    "12 bits in a 16-bit video": Case(make.grey16_video, {"a.mkv": 6}, ("--white 4095",)),
    "cover first": Case(make.cover_art_first, {"a.mp4": 30}, pixel=(30, 30, 30)),
    "bytes after mp4": Case(_with_tail("a.mp4"), {"a.mp4": 16}),
    "bytes after mkv": Case(_with_tail("a.mkv"), {"a.mkv": 16}),
    "bytes after avi": Case(_with_tail("a.avi", codec="mpeg4"), {"a.avi": 16}),
    "bytes after ts": Case(_with_tail("a.ts"), {"a.ts": 16}),
    "anamorphic": Case(make.anamorphic, {"a.mp4": 8}),
    "cut H.264": Case(lambda root: make.cut_front(root, "ts", "libx264"), {"a.ts": 28}, ("no key frame before",)),
    "cut MPEG-2": Case(lambda root: make.cut_front(root, "ts", "mpeg2video"), {"a.ts": 28}, ("no key frame before",)),
    # images
    "1": stills(mode="1"),
    "L": stills(mode="L", pixel=GREY),
    "LA": stills(mode="LA", pixel=GREY),
    "P": stills(mode="P"),
    "P with transparency": Case(make.palette_with_transparency, {"a": 4}, ("over black",)),
    "RGBA": stills(BLACK, ("over black",), frames=np.full((3, 64, 64, 4), (200, 200, 200, 0), np.uint8)),
    "opaque RGBA": stills(mode="RGBA", pixel=GREY),
    "CMYK": stills(mode="CMYK", name="{}.jpg", quality=95),
    "YCbCr": stills(mode="YCbCr", name="{}.jpg"),
    "LAB": stills(mode="LAB", name="{}.tif"),
    "I;16": Case(_deep, {"a": 16}, ("reach only 3520", "--white 4095")),
    "I;16 with --white": Case(_deep, {"a": 16}, flags=("--white", "4095"), pixel=(30, 30, 30)),
    "I": stills(frames=LUMA.astype(np.int32), name="{}.tif", says=("255 is taken for white",), pixel=GREY),
    "F": stills(
        frames=(LUMA / 255).astype(np.float32), name="{}.tif", says=("1 is taken for",), pixel=GREY
    ),
    "PGM with 16 bits": stills(frames=LUMA.astype(np.uint16) * 257, name="{}.pgm", pixel=GREY),
    "BMP": stills(name="{}.bmp"),
    "JPG": stills(name="{}.JPG"),
    "jpeg beside jpg": Case(_mixed_jpegs, {"a": 3}),
    "JPEG 2000": stills(name="{}.jp2"),
    "TGA": stills(name="{}.tga"),
    "images without a suffix": stills(name="{:03d}", format="PNG"),
    "EXIF": Case(make.exif_rotated_jpegs, {"a": 8}),
    "large text in PNG": Case(make.large_text, {"a": 6}),
    "bytes after PNG": Case(_png_tail, {"a": 6}),
    "gaps": Case(make.with_gaps, {"a": 9}, ("3 of its frames are missing, the first between 003.png and 007.png",)),
    "two cameras": Case(_two_cameras, {"a": 12}, ("2 kinds of names (left_#, right_#)",)),
    "every fifth": stills(name="{0}0.png"),
    "frames flat in train": Case(lambda root: make.images(root / "train"), {"train": 6}, ("frames of one clip",)),
    # several frames in one file
    "GIF": film("a.gif"),
    "APNG": film("a.png"),
    "apng": film("a.apng", format="PNG"),
    "WebP": film("a.webp", lossless=True),
    "TIFF": film("a.tif"),
    "AVIF": film("a.avif"),
    "TIFF of 16 bits": Case(lambda root: make.deep_tiff_pages(root, np.uint16, 65535), {"s.tif": 5}),
    "TIFF of floats": Case(lambda root: make.deep_tiff_pages(root, np.float32, 1.0), {"s.tif": 5}, ("1 is taken for",)),
    # shards
    "shards with a group videos": Case(make.reference_shards, {f"shard_0001/{i}": 12 for i in range(3)}),
    "grey shards with labels": Case(
        lambda root: make.reference_shards(root, ("person", "target"), grey=True),
        {f"shard_0001/{i}": 12 for i in range(3)},
        pixel=GREY,
    ),
    "damaged shards": with_video(lambda train: _raw(train / "s/shard_0001.hdf5", b"x" * 99), "shard_0001.hdf5"),
    "HDF5 of another name": with_video(lambda train: _raw(train / "s/a.h5", HDF5 + bytes(99)), "a.h5: neither"),
    # what cannot be read
    "not UTF-8": Case(make.not_utf8, {"a.mp4": 16}, ("caf\\xe9.mp4: its name is not UTF-8",), 1),
    "dangling links": Case(make.dangling_links, {"a.mp4": 16}, ("b.mp4: a link to /nowhere/b.mp4", "/nowhere/c"), 1),
    "a loop of links": Case(make.link_loop, {"a.mp4": 16}, ("up: a link to a folder that contains it",), 1),
    "a named pipe": Case(make.pipe, {"a.mp4": 16}, ("b.mp4: neither a file nor a folder",), 1),
    "no video": with_video(lambda train: _raw(train / "b.mp4", b"no video"), "b.mp4: not a readable video"),
    "empty video": with_video(lambda train: _raw(train / "b.mp4", b""), "b.mp4: not a readable video"),
    "unknown bytes": with_video(lambda train: _raw(train / "b.qqq", bytes(range(256)) * 9), "b.qqq: neither FFmpeg"),
    "damaged GIF": with_video(lambda train: _raw(train / "b.gif", b"GIF89a"), "b.gif: not a readable image"),
    "truncated mkv": with_video(_cut, "b.mkv: truncated"),
    "damaged frame": with_video(_damaged_frame, "003.png: not a readable image"),
    "a frame of another size": with_video(_other_size, "009.png: is 9x9"),
    "two formats in a folder": with_video(_two_formats, "a: contains .jpg and .png images"),
    "empty folder": with_video(lambda train: (train / "b").mkdir(), "b: no image frames"),
    "thumbnails": Case(make.thumbnails_beside_videos, {"c/a.mp4": 16, "c/b.mp4": 16}, ("a.jpg, b.jpg", "@eaDir"), 1),
    "a folder of thumbnails": with_video(_named_thumbs, "thumbs: v.jpg: images named like videos"),
    "text": with_video(lambda train: _raw(train / "notes.txt", b"hello"), "notes.txt", code=0),
    "sound": with_video(lambda train: make.sound(train / "b.wav"), "b.wav", code=0),
    "hidden": with_video(lambda train: _raw(train / ".DS_Store", bytes(99)), ".DS_Store", code=0),
    # what looks odd as a whole
    "the same clip twice": Case(_same, {"a.mp4": 16}, ("test/b.mp4 (test): has the same frames as train/a.mp4",)),
    "two rates": Case(_rates, {"a.mp4": 30, "b.mp4": 60}, ("2 frame rates: 30 per second", "60 per second", "--fps")),
    "two rates to one": Case(_rates, {"a.mp4": 30, "b.mp4": 30}, flags=("--fps", "30")),
    "names of splits": Case(_split_names, {"Train.mp4": 8}, ("taken for val", "same frames")),
    "GIF to another rate": Case(
        lambda root: make.film(root / "train/a.gif", duration=100), {"a.gif": 12}, flags=("--fps", "20")
    ),
}  # fmt: skip


def convert(root, out, flags):
    return convert_to_h5.main(
        ["--data_dir", str(root), "--out_dir", str(out), "--image_size", "64", "--num-workers", "1", *flags]
    )


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture(scope="module")
def tally():
    counts = dict.fromkeys(("read", "named", "lost"), 0)
    yield counts
    assert counts["lost"] == 0
    if counts["read"] > 50:  # the whole table ran
        assert counts["read"] + counts["named"] >= len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_is_read_or_named(tmp_path, capsys, tally, name):
    case, root = CASES[name], tmp_path / "in"
    case.make(root)
    code = convert(root, tmp_path / "out", case.flags)
    captured = capsys.readouterr()
    shards = open_shards(tmp_path / "out" / "train")
    assert dict(zip(shards.names, shards.lengths.tolist(), strict=True)) == case.frames, captured.err
    assert shards.frame_shape == (64, 64, 3)
    for part in case.says:
        assert part in captured.err
    assert code == case.code
    if case.code == 0 and not case.says:
        assert "left out:" not in captured.err and "kept despite" not in captured.err
    if case.pixel:
        assert np.abs(shards.clip(0)[0, 0, 63].astype(int) - case.pixel).max() <= 3
    tally["read"] += len(case.frames)
    tally["named"] += case.code
    _generate_reads_the_same(root, shards, case)


def _generate_reads_the_same(root, shards, case):
    train = next(path for path in root.iterdir() if path.name.lower() == "train")
    if case.flags or (train / "shard_0001.hdf5").exists():
        return
    for i, name in enumerate(shards.names):
        path = train if name == "train" else train / name
        clip = read_clip(path, MANIFEST, 200)
        np.testing.assert_array_equal(clip.frames, shards.clip(i))


def test_what_generate_does_not_read_it_names(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: a single image"):
        read_clip(tmp_path / "a.png", MANIFEST, None)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.txt: neither FFmpeg nor Pillow"):
        read_clip(tmp_path / "a.txt", MANIFEST, None)
    make.reference_shards(tmp_path, grey=True)
    assert read_clip(tmp_path / "train", MANIFEST, None).frames.shape == (12, 64, 64, 3)


def test_an_anamorphic_disc_is_round(tmp_path, capsys):
    make.anamorphic(tmp_path / "in")
    for fit in ("crop", "pad"):
        convert(tmp_path / "in", tmp_path / fit, ("--fit", fit))
        disc = open_shards(tmp_path / fit / "train").clip(0)[0, ..., 0] > 120
        wide, high = np.ptp(np.flatnonzero(disc.any(0))), np.ptp(np.flatnonzero(disc.any(1)))
        assert abs(wide - high) <= 1 and wide > 30
    clip = read_clip(tmp_path / "in/train/a.mp4", replace(MANIFEST, image_size=64), None)
    np.testing.assert_array_equal(clip.frames[0], open_shards(tmp_path / "crop/train").clip(0)[0])


def test_rotated_jpegs_are_upright(tmp_path, capsys):
    make.exif_rotated_jpegs(tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", ())
    make.images(tmp_path / "plain/train/a", make.clip(8, 48, 64), "{}.jpg", quality=95)
    convert(tmp_path / "plain", tmp_path / "out2", ())
    found, wanted = (open_shards(tmp_path / out / "train").clip(0).astype(int) for out in ("out", "out2"))
    assert np.abs(found - wanted).mean() < 2


def test_next_command_quotes_and_val_comes_out_of_train(tmp_path, capsys):
    root = tmp_path / "my videos"
    for i in range(10):
        make.images(root / f"train/c{i}", make.clip(4) + i)
    assert convert(root, tmp_path / "the out", ()) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert f"--data_dir '{root}'" in line and line.endswith("--split 0.8,0.1,0.1")
    assert convert(root, tmp_path / "the out 2", ("--split", "0.8,0.2,0")) == 0
    assert f"--dataset.root '{tmp_path / 'the out 2'}'" in capsys.readouterr().out
    assert len(open_shards(tmp_path / "the out 2/val")) == 2
    shutil.rmtree(root)
