"""The table of odd inputs, and what is right for each: what is read, and what is named with a reason."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from tests.data import odd_inputs as make


@dataclass(frozen=True)
class Case:
    """An input.

    make: writes it below a folder. frames: number of frames of each clip of train/, by name. left: files and folders
    below train/ that cannot be read, so a line must name each and say why. says: other parts of the messages. code:
    exit code of the conversion. flags: of the conversion. pixel: the upper right corner of the first frame of the first
    clip, if it matters.
    """

    make: object
    frames: dict[str, int]
    says: tuple[str, ...] = ()
    code: int = 0
    flags: tuple[str, ...] = ()
    pixel: tuple[int, int, int] | None = None
    left: tuple[str, ...] = ()


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


def with_video(write, left, reason="", code=1):
    """Something unreadable beside a video, which is packed all the same."""

    def both(root):
        make.video(root / "train/v/v.mp4")
        write(root / "train")

    return Case(both, {"v/v.mp4": 16}, (reason,), code, left=(left,))


def flat(write, frames, **more):
    """A file directly in train/. write: called with its folder."""
    return Case(lambda root: write(root / "train"), frames, **more)


def _damaged_frame(train):
    make.images(train / "a")
    (train / "a/003.png").write_bytes((train / "a/003.png").read_bytes()[:100])


def _empty_frame(train):
    make.images(train / "a")
    (train / "a/003.png").write_bytes(b"")


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
    "bytes after y4m": Case(
        _with_tail("a.y4m", codec="wrapped_avframe", format="yuv4mpegpipe"), {"a.y4m": 16}, ("no whole frame",)
    ),
    "cut y4m": Case(make.cut_raw, {"a.y4m": 12}, ("last 4621 bytes are no whole frame, left out",)),
    "bytes after ts": Case(_with_tail("a.ts"), {"a.ts": 16}),
    "anamorphic": Case(make.anamorphic, {"a.mp4": 8}),
    "cut H.264": Case(lambda root: make.cut_front(root, "ts", "libx264"), {"a.ts": 28}, ("no key frame before",)),
    "cut MPEG-2": Case(lambda root: make.cut_front(root, "ts", "mpeg2video"), {"a.ts": 28}, ("no key frame before",)),
    "HEVC of 10 bits": v("a.mp4", "libx265", "yuv420p10le", options={"x265-params": "log-level=0"}),
    "ProRes": v("a.mov", "prores_ks", "yuv422p10le"),
    "raw AVI": v("a.avi", "rawvideo", "bgr24"),
    "Motion JPEG": v("a.mjpeg", "mjpeg", "yuvj420p"),
    "Motion JPEG without a suffix": v("a", "mjpeg", "yuvj420p", format="mjpeg"),
    "AV1 stream": v("a.obu", "libsvtav1"),
    "HEVC stream": v("a.hevc", "libx265", options={"x265-params": "log-level=0"}),
    "interlaced": v("a.mpg", "mpeg2video", rate=25, options={"flags": "+ildct+ilme"}),
    "fragmented": v("a.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}, options={"g": "4"}),
    "odd sides": v("a.mkv", "ffv1", frames=make.clip(16, 67, 91)),
    "one frame": flat(lambda train: make.video(train / "a.mp4", make.clip(1)), {"a.mp4": 1}),
    "a video named as text": v("a.txt", format="mp4"),
    "a video named as HDF5": v("a.h5", format="mp4"),
    "an mp4 named avi": v("a.avi", format="mp4"),
    "capital suffix": v("a.MP4"),
    "leading dash": v("-a.mp4"),
    "per cent": v("a%d%%.mp4"),
    "frame rate that varies": Case(make.varying_rate, {"a.mp4": 7}),
    "frame rate that varies, to one": Case(make.varying_rate, {"a.mp4": 35}, flags=("--fps", "30")),
    "transparent video": Case(make.transparent_video, {"a.mov": 6}, ("shown over black",), pixel=BLACK),
    "a byte that is not transparency": Case(partial(make.transparent_video, alpha=0), {"a.mov": 6}, pixel=(200,) * 3),
    "a cover as a stream": Case(make.cover_as_stream, {"a.mkv": 16}, ("number 2 is read",), pixel=GREY),
    "16-bit colors in a video": Case(make.rgb48_video, {"a.mov": 6}, ("--white 4095",)),
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
    "two bits": Case(lambda root: make.raw_pngs(root, 2, 0), {"a": 4}, pixel=BLACK),
    "16-bit colors": Case(lambda root: make.raw_pngs(root, 16, 2), {"a": 4}, ("reach only 3520", "--white 4095")),
    "16-bit colors with --white": Case(
        lambda root: make.raw_pngs(root, 16, 2), {"a": 4}, flags=("--white", "4095"), pixel=GREY
    ),
    "I;16B": stills(frames=LUMA.astype(">u2") * 257, name="{}.tif", pixel=GREY),
    "negative values": stills(
        frames=LUMA.astype(np.float32) / 128 - 1, name="{}.tif", says=("1 is taken for", "down to -0.7"), pixel=BLACK
    ),
    "modes that change": Case(make.changing_modes, {"a": 6}, pixel=GREY),
    "PNG named jpg": stills(name="{}.jpg", format="PNG", pixel=GREY),
    "suffixes of JPEG": Case(make.jpeg_suffixes, {"a": 4}),
    "MPO": Case(make.stereo_pictures, {"a": 4}),
    "numbers without zeros": stills(frames=make.clip(12), name="{}.png"),
    "the same number twice": Case(make.same_number, {"a": 4}, ("have the same number, such as 01.png and 1.png",)),
    "a folder named like a video": Case(lambda root: make.images(root / "train/x.mp4"), {"x.mp4": 6}),
    "DPX": Case(partial(make.by_ffmpeg, codec="dpx", pix="rgb24"), {"a": 4}, pixel=GREY),
    "OpenEXR": Case(partial(make.by_ffmpeg, codec="exr", pix="gbrpf32le"), {"a": 4}, pixel=GREY),
    # several frames in one file
    "APNG with a default image": Case(make.apng_with_default, {"a.png": 6}, pixel=GREY),
    "GIF with disposal": film("a.gif", disposal=2),
    "WebP with bytes after it": flat(make.webp_with_tail, {"a.webp": 6}),
    "GIF of FFmpeg": v("a.gif", "gif", "rgb8"),
    "pages of two modes": Case(make.pages_of_two_modes, {"a.tif": 4}, pixel=GREY),
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
    "damaged shards": with_video(lambda train: _raw(train / "s/shard_0001.hdf5", b"x" * 99), "s/shard_0001.hdf5"),
    "HDF5 of another name": with_video(
        lambda train: _raw(train / "s/a.h5", HDF5 + bytes(99)), "s/a.h5", "neither FFmpeg"
    ),
    # what cannot be read
    "not UTF-8": Case(make.not_utf8, {"a.mp4": 16}, ("its name is not UTF-8",), 1, left=("caf\\xe9.mp4",)),
    "a frame not UTF-8": Case(
        make.not_utf8_frame, {"a": 5}, ("its name is not UTF-8",), 1, left=("005\\xe9.png",)
    ),
    "dangling links": Case(make.dangling_links, {"a.mp4": 16}, ("a link to /nowhere/b.mp4",), 1, left=("b.mp4", "c")),
    "a loop of links": Case(make.link_loop, {"a.mp4": 16}, ("a link to a folder that contains it",), 1, left=("up",)),
    "links in a circle": Case(
        make.link_circle,
        {"d/a.mp4": 16, "d/e/b.mp4": 16, "e/b.mp4": 16, "e/d/a.mp4": 16},
        ("a link to a folder that contains it",),
        1,
        left=("d/e/d", "e/d/e"),
    ),
    "a named pipe": Case(make.pipe, {"a.mp4": 16}, ("neither a file nor a folder",), 1, left=("b.mp4",)),
    "no video": with_video(lambda train: _raw(train / "b.mp4", b"no video"), "b.mp4", "not a readable video"),
    "empty video": with_video(lambda train: _raw(train / "b.mp4", b""), "b.mp4", "not a readable video"),
    "video without its index": with_video(make.without_index, "b.mp4", "not a readable video"),
    "unknown bytes": with_video(lambda train: _raw(train / "b.qqq", bytes(range(256)) * 9), "b.qqq", "neither FFmpeg"),
    "a table": with_video(lambda train: _raw(train / "b.parquet", b"PAR1\0\1\2\3PAR1"), "b.parquet", "not a readable"),
    "an archive": with_video(lambda train: _raw(train / "b.zip", b"PK\3\4" + bytes(99)), "b.zip", code=0),
    "damaged GIF": with_video(lambda train: _raw(train / "b.gif", b"GIF89a"), "b.gif", "not a readable image"),
    "truncated GIF": with_video(partial(make.cut_film, name="b.gif"), "b.gif", "not a readable image"),
    "truncated APNG": with_video(partial(make.cut_film, name="b.png"), "b.png", "not a readable image"),
    "truncated WebP": with_video(partial(make.cut_film, name="b.webp"), "b.webp", "not a readable image"),
    "pages of two sizes": with_video(make.pages_of_two_sizes, "b.tif", "frame 2 is"),
    "truncated mkv": with_video(_cut, "b.mkv", "truncated"),
    "damaged frame": with_video(_damaged_frame, "a/003.png", "not a readable image"),
    "empty frame": with_video(_empty_frame, "a/003.png", "not a readable image (the file is empty)"),
    "a frame of another size": with_video(_other_size, "a/009.png", "is 9x9"),
    "two formats in a folder": with_video(_two_formats, "a", "contains .jpg and .png images"),
    "empty folder": with_video(lambda train: (train / "b.mp4").mkdir(), "b.mp4", "no image frames"),
    "thumbnails": Case(
        make.thumbnails_beside_videos,
        {"c/a.mp4": 16, "c/b.mp4": 16},
        ("images beside videos",),
        1,
        left=("c/a.jpg", "c/b.jpg", "@eaDir"),
    ),
    "a folder of thumbnails": with_video(_named_thumbs, "thumbs/v.jpg", "images named like videos"),
    "text": with_video(lambda train: _raw(train / "notes.txt", b"hello"), "notes.txt", code=0),
    "sound": with_video(lambda train: make.sound(train / "b.wav"), "b.wav", code=0),
    "hidden": with_video(lambda train: _raw(train / ".DS_Store", bytes(99)), ".DS_Store", code=0),
    "hidden video": with_video(lambda train: make.video(train / ".b.mp4"), ".b.mp4", "hidden", code=0),
    # what looks odd as a whole
    "the same clip twice": Case(_same, {"a.mp4": 16}, ("test/b.mp4 (test): has the same frames as train/a.mp4",)),
    "two rates": Case(_rates, {"a.mp4": 30, "b.mp4": 60}, ("2 frame rates: 30 per second", "60 per second", "--fps")),
    "two rates to one": Case(_rates, {"a.mp4": 30, "b.mp4": 30}, flags=("--fps", "30")),
    "names of splits": Case(_split_names, {"Train.mp4": 8}, ("taken for val", "same frames")),
    "GIF to another rate": Case(
        lambda root: make.film(root / "train/a.gif", duration=100), {"a.gif": 12}, flags=("--fps", "20")
    ),
}  # fmt: skip
