"""Makers of inputs as people have them: videos, images and shards that are odd in one way each, made from nothing."""

import io
import os
import struct
import zlib
from fractions import Fraction

import av
import h5py
import numpy as np
from PIL import Image, PngImagePlugin


def clip(n=16, h=64, w=64):
    """A bright square that moves over dark ground, uint8 [n, h, w, 3]."""
    frames = np.full((n, h, w, 3), 30, np.uint8)
    for t in range(n):
        y, x = (4 + t) % (h - 12), (4 + 2 * t) % (w - 12)
        frames[t, y : y + 10, x : x + 10] = (220, 180, 40)
    return frames


def video(path, frames=None, codec="libx264", pix="yuv420p", rate=10, options=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = clip() if frames is None else frames
    with av.open(str(path), "w", **more) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def images(folder, frames=None, name="{:03d}.png", mode=None, **save):
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(clip(6) if frames is None else frames):
        image = Image.fromarray(frame)
        (image.convert(mode) if mode else image).save(folder / name.format(t), **save)


def film(path, frames=None, **save):
    """One file with several frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(frame) for frame in (clip(6) if frames is None else frames)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **save)


def reference_shards(root, extra=(), grey=False):
    """As the reference code and its relatives write them: `len`, an empty group `videos`, a dataset a frame."""
    (root / "train").mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "train/shard_0001.hdf5", "w") as file:
        for name in ("len", "videos", *extra):
            file.create_group(name)
        for i in range(3):
            file["len"].create_dataset(str(i), data=12)
            for name in extra:
                file[name].create_dataset(str(i), data=7)
            for t, frame in enumerate(clip(12)):
                file.create_dataset(f"{i}/{t}", data=frame[..., 0] if grey else frame, compression="lzf")


def exif_rotated_jpegs(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    images(root / "train/a", np.rot90(clip(8, 48, 64), 1, (1, 2)).copy(), "{}.jpg", quality=95, exif=exif)


def thumbnails_beside_videos(root):
    for name in "ab":
        video(root / f"train/c/{name}.mp4")
        images(root / "train/c", clip(1), f"{name}.jpg")
    images(root / "train/@eaDir/a.mp4", clip(1), "SYNOVIDEO_VIDEO_SCREENSHOT.jpg")


def anamorphic(root):
    y, x = np.mgrid[:128, :128]
    disc = (((y - 64) ** 2 + (x - 64) ** 2 < 40**2) * 200 + 30).astype(np.uint8)
    frames = np.repeat(np.repeat(disc[None, :, ::2, None], 8, 0), 3, 3)
    video(root / "train/a.mp4", frames, options={"x264-params": "sar=2/1"})


def renamed(root, old, new):
    video(root / f"train/{old}")
    os.rename(root / f"train/{old}", root / "train" / new)


def not_utf8(root):
    video(root / "train/a.mp4")
    video(root / "train/b.mp4")
    os.rename(bytes(root / "train/b.mp4"), bytes(root / "train") + b"/caf\xe9.mp4")


def not_utf8_frame(root):
    """Five frames with good names, and a sixth."""
    images(root / "train/a")
    os.rename(bytes(root / "train/a/005.png"), bytes(root / "train/a") + b"/005\xe9.png")


def dangling_links(root):
    video(root / "train/a.mp4")
    os.symlink("/nowhere/b.mp4", root / "train/b.mp4")
    os.symlink("/nowhere/c", root / "train/c")


def cover_art_first(root):
    path = video(root / "train/a.mp4", clip(30))
    raw = bytearray(path.read_bytes())
    cover = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(cover, "JPEG")

    def box(kind, body):
        return struct.pack(">I", 8 + len(body)) + kind + body

    data = box(b"data", struct.pack(">II", 13, 0) + cover.getvalue())
    meta = bytes(4) + box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9)) + box(b"ilst", box(b"covr", data))
    user = box(b"udta", box(b"meta", meta))
    moov = raw.rindex(b"moov") - 4
    raw[moov : moov + 4] = struct.pack(">I", int.from_bytes(raw[moov : moov + 4], "big") + len(user))
    raw[moov + 8 : moov + 8] = user
    path.write_bytes(raw)


def append(path, tail=b"tL,\xd7" + bytes(range(256)) * 4):
    with path.open("ab") as file:
        file.write(tail)


def with_gaps(root):
    images(root / "train/a", clip(12))
    for t in (4, 5, 6):
        os.remove(root / f"train/a/{t:03d}.png")


def cut_front(root, suffix, codec, options=None):
    """A recording that begins between two key frames."""
    path = video(root / f"train/a.{suffix}", clip(40), codec, options=options or {"g": "12", "bf": "2"})
    raw = path.read_bytes()
    at = len(raw) // 4 // 188 * 188
    # The tables of a transport stream come first, and stay.
    path.write_bytes(raw[: 3 * 188] + raw[at:])


def large_text(root):
    text = PngImagePlugin.PngInfo()
    text.add_text("document", "x" * 3_000_000, zip=True)
    images(root / "train/a", pnginfo=text)


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def palette_with_transparency(root):
    (root / "train/a").mkdir(parents=True)
    for t in range(4):
        image = Image.fromarray(clip(4)[t]).quantize(8)
        image.save(root / f"train/a/{t}.png", transparency=0)


def deep_tiff_pages(root, dtype, top):
    ramp = np.linspace(0, top, 64 * 64).reshape(64, 64).astype(dtype)
    film_of = [Image.fromarray(np.roll(ramp, t, 1)) for t in range(5)]
    (root / "train").mkdir(parents=True)
    film_of[0].save(root / "train/s.tif", save_all=True, append_images=film_of[1:])


def grey16_video(root):
    path = root / "train/a.mkv"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "gray16le"
        for frame in clip(6)[..., 0].astype(np.uint16) * 16:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray16le")))
        container.mux(stream.encode())


def link_loop(root):
    video(root / "train/a.mp4")
    os.symlink("..", root / "train/up")


def pipe(root):
    video(root / "train/a.mp4")
    os.mkfifo(root / "train/b.mp4")


def cut_raw(root):
    path = video(root / "train/a.y4m", codec="wrapped_avframe", format="yuv4mpegpipe")
    path.write_bytes(path.read_bytes()[: -3 * (64 * 64 * 3 // 2 + 6) - 1529])


def link_circle(root):
    for name, other, clip_name in (("d", "e", "a"), ("e", "d", "b")):
        video(root / f"train/{name}/{clip_name}.mp4")
        os.symlink(f"../{other}", root / f"train/{name}/{other}")


def without_index(train):
    path = video(train / "b.mp4")
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.rindex(b"moov") - 4])


def cut_film(train, name):
    film(train / name)
    (train / name).write_bytes((train / name).read_bytes()[:-200])


def pages_of_two_sizes(train):
    pages = [Image.fromarray(frame) for frame in clip(4)]
    pages[2] = pages[2].resize((32, 32))
    pages[0].save(train / "b.tif", save_all=True, append_images=pages[1:])


def pages_of_two_modes(root):
    (root / "train").mkdir(parents=True)
    pages = [Image.fromarray(frame) for frame in clip(4)]
    pages[2] = pages[2].convert("L")
    pages[0].save(root / "train/a.tif", save_all=True, append_images=pages[1:])


def apng_with_default(root):
    (root / "train").mkdir(parents=True)
    pages = [Image.fromarray(frame) for frame in clip(6)]
    Image.new("RGB", (64, 64), "red").save(root / "train/a.png", save_all=True, append_images=pages, default_image=True)


def webp_with_tail(train):
    film(train / "a.webp", lossless=True)
    append(train / "a.webp")


def varying_rate(root):
    path, unit = root / "train/a.mp4", Fraction(1, 1000)
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        stream.time_base = stream.codec_context.time_base = unit
        for time, pixels in zip((0, 33, 67, 100, 600, 1100, 1133), clip(7), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def transparent_video(root, alpha=255):
    """The upper half is transparent, the lower half has the given alpha."""
    pixels = np.full((64, 64, 4), 200, np.uint8)
    pixels[:32, :, 3], pixels[32:, :, 3] = 0, alpha
    encode(root / "train/a.mov", [pixels] * 6, "qtrle", "argb", "rgba")


def rgb48_video(root):
    """12 bits in 16."""
    encode(root / "train/a.mov", clip(6).astype(np.uint16) * 16, "png", "rgb48be", "rgb48le")


def encode(path, frames, codec, pix, given):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format=given)))
        container.mux(stream.encode())


def cover_as_stream(root):
    path = root / "train/a.mkv"
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=10) for codec in ("mjpeg", "libx264")]
        for stream, pix in zip(streams, ("yuvj420p", "yuv420p"), strict=True):
            stream.height, stream.width, stream.pix_fmt = 64, 64, pix
        for stream, frames in zip(streams, (255 - clip(1), clip()), strict=True):
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())


def raw_pngs(root, bits, color):
    """PNGs of 2 bits of grey, or of 16 bits of color, of which 12 are used; Pillow writes neither."""
    (root / "train/a").mkdir(parents=True)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for t, frame in enumerate(clip(4)):
        if bits == 2:
            grey = frame[..., 0] // 64
            rows = grey[:, 0::4] << 6 | grey[:, 1::4] << 4 | grey[:, 2::4] << 2 | grey[:, 3::4]
        else:
            rows = (frame.astype(np.uint16) * 16).astype(">u2")
        data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
        header = struct.pack(">IIBBBBB", 64, 64, bits, color, 0, 0, 0)
        parts = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        (root / f"train/a/{t}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def changing_modes(root):
    (root / "train/a").mkdir(parents=True)
    for t, (frame, mode) in enumerate(zip(clip(6), ("RGB", "L", "P", "RGBA", "LA", "RGB"), strict=True)):
        Image.fromarray(frame).convert(mode).save(root / f"train/a/{t}.png")


def jpeg_suffixes(root):
    (root / "train/a").mkdir(parents=True)
    for t, suffix in enumerate((".JPeG", ".jpe", ".JPG", ".jfif")):
        Image.fromarray(clip(4)[t]).save(root / f"train/a/{t}{suffix}", format="JPEG")


def stereo_pictures(root):
    (root / "train/a").mkdir(parents=True)
    for t, frame in enumerate(clip(4)):
        image = Image.fromarray(frame)
        image.save(root / f"train/a/{t}.jpg", format="MPO", save_all=True, append_images=[image])


def same_number(root):
    (root / "train/a").mkdir(parents=True)
    for name in ("1", "01", "2", "3"):
        Image.fromarray(clip(4)[int(name)]).save(root / f"train/a/{name}.png")


def by_ffmpeg(root, codec, pix):
    """Images in a format that only FFmpeg reads."""
    (root / "train/a").mkdir(parents=True)
    for t, pixels in enumerate(clip(4)):
        encoder = av.CodecContext.create(codec, "w")
        encoder.height, encoder.width, encoder.pix_fmt, encoder.time_base = 64, 64, pix, Fraction(1, 10)
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix)
        packets = [*encoder.encode(frame), *encoder.encode(None)]
        (root / f"train/a/{t}.{codec}").write_bytes(b"".join(map(bytes, packets)))
