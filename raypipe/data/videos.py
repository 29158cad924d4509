"""Video files and folders of images: finding, reading, resizing, writing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypipe.files import atomic_path

Frames = NDArray[np.uint8]
VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


@dataclass(frozen=True)
class Source:
    """One clip to be: a video file, or a folder of frames. name: its path below the split, unique."""

    name: str
    path: Path
    is_video: bool


def find_clips(folder: str | Path, extension: str = "png") -> list[Source]:
    """Every video file and every folder of frames under `folder`, at any depth, in natural order.

    A folder without anything in it that is known counts as a folder of frames, so that reading it says
    what is wrong with it. Raises ValueError if `folder` is missing or nothing is found.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    sources = list(_walk(folder, folder, f".{extension.lstrip('.').lower()}"))
    if not sources:
        raise ValueError(
            f"{folder}: no clips found; it must hold video files ({', '.join(sorted(VIDEO_SUFFIXES))}) or one"
            f" folder of .{extension.lstrip('.')} frames for each clip"
        )
    return sorted(sources, key=lambda source: natural(source.name))


def _walk(folder: Path, root: Path, suffix: str) -> Iterator[Source]:
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    videos = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in VIDEO_SUFFIXES]
    folders = [entry for entry in entries if entry.is_dir()]
    has_frames = any(entry.suffix.lower() == suffix and entry.is_file() for entry in entries)
    if folder != root and (has_frames or not (videos or folders)):
        yield Source(folder.relative_to(root).as_posix(), folder, is_video=False)
    for entry in videos:
        yield Source(entry.relative_to(root).as_posix(), entry, is_video=True)
    for entry in folders:
        yield from _walk(entry, root, suffix)


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which frame_2 comes before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)] + [(-1, name)]


def iter_video(path: str | Path) -> Iterator[Frames]:
    """The frames [H, W, 3] of a video file, one by one. Raises ValueError, naming the file, if it does not decode."""
    shape: tuple[int, ...] | None = None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: holds no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            # By default FFmpeg paints over what it cannot decode, and a damaged file trains on smears.
            stream.codec_context.options = {"err_detect": "explode"}
            for count, frame in enumerate(container.decode(stream)):
                image: Frames = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                shape = shape or image.shape
                if image.shape != shape:
                    raise ValueError(f"{path}: frame {count} is {_size(image.shape)}, the first is {_size(shape)}")
                yield image
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: not a readable video ({error.strerror or error})") from None
    if shape is None:
        raise ValueError(f"{path}: no frame of this video decodes")


def read_video(path: str | Path) -> Frames:
    """All frames of a video file, uint8 [T, H, W, 3]: T is counted, whatever the header says."""
    return np.stack(list(iter_video(path)))


def iter_frames(folder: str | Path, extension: str = "png") -> Iterator[Frames]:
    """The images [H, W, 3] in a folder, one by one, in natural order of their names.

    Raises ValueError, naming the file, for one that is unreadable or of another size than the first.
    """
    suffix = f".{extension.lstrip('.').lower()}"
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() == suffix and not path.name.startswith(".")]
    if not paths:
        others = sorted({path.suffix for path in Path(folder).iterdir() if path.suffix})
        held = f" (it holds {', '.join(others)} files: see --extension)" if others else ""
        raise ValueError(f"{folder}: no {suffix} frames in this folder{held}")
    shape: tuple[int, ...] | None = None
    for path in sorted(paths, key=lambda path: natural(path.name)):
        try:
            with Image.open(path) as image:
                frame = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise ValueError(f"{path}: not a readable image") from None
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"{path}: is {_size(frame.shape)}, the frames before it are {_size(shape)}")
        yield frame


def read_frames(folder: str | Path, extension: str = "png") -> Frames:
    """All images of a folder, uint8 [T, H, W, 3]. Raises ValueError as `iter_frames`."""
    return np.stack(list(iter_frames(folder, extension)))


def read_source(source: Source, size: int, extension: str = "png") -> Frames:
    """A clip, resized frame by frame: uint8 [T, size, size, 3]. Never holds the clip at its full size."""
    frames = iter_video(source.path) if source.is_video else iter_frames(source.path, extension)
    return np.stack([resize(frame, size) for frame in frames])


def resize(frames: Frames, size: int) -> Frames:
    """Crop [..., H, W, 3] to the square in its centre, then scale it to [..., size, size, 3] (antialiased Lanczos)."""
    *batch, height, width, _ = frames.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side, :]
    if side == size:
        return np.ascontiguousarray(square)
    images = square.reshape(-1, side, side, 3)
    scaled = [np.asarray(Image.fromarray(i).resize((size, size), Image.Resampling.LANCZOS)) for i in images]
    return np.stack(scaled).reshape(*batch, size, size, 3)


def write_video(path: str | Path, frames: Frames, fps: float) -> None:
    """Write uint8 [T, H, W, 3] as mp4 (H.264, yuv420p). Odd sides grow by one pixel, as the format wants."""
    _check(frames, fps)
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    with atomic_path(Path(path)) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: str | Path, frames: Frames, fps: float) -> None:
    """Write uint8 [T, H, W, 3] as an endless GIF. Its clock ticks in hundredths of a second."""
    _check(frames, fps)
    images = [Image.fromarray(image) for image in frames]
    milliseconds = max(20, round(100 / fps) * 10)
    with atomic_path(Path(path)) as temporary:
        images[0].save(temporary, format="GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def _check(frames: Frames, fps: float) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) == 0:
        raise ValueError(f"frames: must be uint8 [T, H, W, 3] with T at least 1, not {frames.dtype} {frames.shape}")
    if not fps > 0:
        raise ValueError(f"fps: must be above 0, not {fps}")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
