"""Decide by a file's content what it is: a video, an image, or an image file with several frames."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path
from typing import Literal

import av

from raypipe.common.errors import UserError
from raypipe.data.video.images import is_film, opened

Kind = Literal["video", "film", "image", "tar", "array", "table", "bad", "other"]
"""video: FFmpeg reads it. film: Pillow reads several frames. image: Pillow reads one. tar, array, table: a tar file,
NumPy's arrays, a Parquet or Arrow file; each may hold several clips. bad: claims by its name to be a video or
image, or is unknown. other: not about pictures, such as text or sound."""

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv"}
    | {".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif"}
    | {".tiff", ".webp"}
)
PLAIN_IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm"})
"""Usual suffixes of the images of a folder of frames."""
HOLDER_SUFFIXES: dict[str, Kind] = {
    ".tar": "tar",
    ".npy": "array",
    ".npz": "array",
    ".parquet": "table",
    ".arrow": "table",
}
TGA_SUFFIXES = frozenset({".icb", ".tga", ".vda", ".vst"})
REFUSED = frozenset({"tty", "cdg", "concat", "hls", "image2"})
"""FFmpeg demuxers that take text or zeros for pictures, or read other files than the one given."""
HEAD = 512


def kind_of(path: str) -> Kind:
    """The kind of a file, by its content; the name decides only for what neither FFmpeg nor Pillow opens."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return "bad"
    if _is_usual_video(head):
        return "video"
    if head[:3] == b"\xff\xd8\xff":
        return "image" if os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES else _jpeg_kind(path)
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "bad"  # perhaps shards of another name
    holder = _holder(head, os.path.splitext(path)[1].lower())
    if holder:
        return holder
    try:
        with opened(path) as image:
            unsure = image.format == "TGA" and os.path.splitext(path)[1].lower() not in TGA_SUFFIXES
            # Nothing marks the beginning of a TGA file, so Pillow takes many other files for one.
            kind = _opened_by_ffmpeg(path, head) if unsure else "other"
            return kind if kind == "video" else "film" if is_film(image) else "image"
    except UserError:
        return _opened_by_ffmpeg(path, head)


def _holder(head: bytes, suffix: str) -> Kind | None:
    """Which kind of file of several clips a file is, by its first bytes; None if none."""
    if head[257:262] == b"ustar":
        return "tar"
    if head[:6] == b"\x93NUMPY" or (head[:2] == b"PK" and suffix == ".npz"):
        return "array"
    if head[:4] == b"PAR1" or head[:6] == b"ARROW1" or (head[:4] == b"\xff\xff\xff\xff" and suffix == ".arrow"):
        return "table"
    return None


def _is_usual_video(head: bytes) -> bool:
    """Whether a file begins like one of the usual containers, which saves opening it."""
    if head[4:8] == b"ftyp":
        return not any(brand in head[8:64] for brand in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"M4A "))
    return (
        head[:4] == bytes.fromhex("1a45dfa3")
        or (head[:4] == b"RIFF" and head[8:12] == b"AVI ")
        or (head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G")
    )


def _jpeg_kind(path: str) -> Kind:
    """Whether a file that begins like a JPEG is a single picture, or a stream of them (Motion JPEG)."""
    try:
        with av.open(ffmpeg_url(path)) as container:
            return "video" if container.format.name == "mjpeg" else "image"
    except (av.FFmpegError, OSError):
        return "image"


def _opened_by_ffmpeg(path: str, head: bytes) -> Kind:
    suffix = os.path.splitext(path)[1].lower()
    if suffix in VIDEO_SUFFIXES:
        return "video"  # if it is damaged, the reader says how
    if suffix in IMAGE_SUFFIXES:
        return "bad"
    if suffix in HOLDER_SUFFIXES:
        return HOLDER_SUFFIXES[suffix]  # likewise
    if head and not _is_text(head):
        try:
            with av.open(ffmpeg_url(path)) as container:
                names = set(container.format.name.split(","))
                if container.streams.video and not names & REFUSED:
                    return "image" if container.format.name.endswith("_pipe") else "video"
                return "other"
        except (av.FFmpegError, OSError, ValueError):
            pass
    guess = mimetypes.guess_type(f"x{suffix}")[0] or ("text/plain" if _is_text(head) else "")
    return "other" if guess and not guess.startswith(("video/", "image/")) else "bad"


def _is_text(head: bytes) -> bool:
    if head.startswith(b"YUV4MPEG2"):
        return False
    return not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)


def ffmpeg_url(path: str | Path) -> str:
    """A path as FFmpeg's URL; otherwise the part before a colon in a relative path would count as a protocol."""
    return f"file:{os.fspath(path)}"
