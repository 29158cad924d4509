"""Video files and folders of images: reading, resizing, writing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from raypipe.common.errors import UserError
from raypipe.common.files import atomic_path
from raypipe.data.video.fitting import Fit, rgb
from raypipe.data.video.fitting import Frames as Frames
from raypipe.data.video.truncation import stated_size

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which frame_2 comes before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)] + [(-1, name)]


def decode(path: str | Path, threads: int = 0, note: Callable[[str], None] | None = None) -> Iterator[av.VideoFrame]:
    """The frames of a video file, one by one, all of one size.

    threads: of the decoder, 0 for as many as there are processors. note: told if the header announces more frames
    than there are. Raises ValueError, naming the file, if it does not decode to its end, or is cut off.
    """
    shape: tuple[int, int] | None = None
    count = 0
    try:
        # FFmpeg first: of a file that is no video at all, it says so.
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: holds no video stream")
            stated, held = stated_size(Path(path)), Path(path).stat().st_size
            if stated is not None and stated > held:
                raise UserError(f"{path}: is cut off: {held} bytes, and {stated} by its header")
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = "AUTO", threads
            # By default FFmpeg paints over what it cannot decode, and a damaged file trains on smears.
            stream.codec_context.options = {"err_detect": "explode"}
            announced = stream.frames
            for frame in container.decode(stream):
                shape = shape or (frame.height, frame.width)
                if (frame.height, frame.width) != shape:
                    found = _size((frame.height, frame.width))
                    raise UserError(f"{path}: frame {count} is {found}, the first is {_size(shape)}")
                count += 1
                yield frame
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: not a readable video ({error.strerror or error})") from None
    if count == 0:
        raise UserError(f"{path}: no frame of this video decodes")
    if note is not None and announced > count:
        note(f"{path}: its header announces {announced} frames, {count} are there")


def iter_video(path: str | Path) -> Iterator[Frames]:
    """The frames [H, W, 3] of a video file, one by one, upright. Raises ValueError as `decode`."""
    for frame in decode(path):
        yield rgb(frame)


def read_video(path: str | Path) -> Frames:
    """All frames of a video file, uint8 [T, H, W, 3]: T is counted, whatever the header says."""
    return np.stack(list(iter_video(path)))


def iter_images(folder: str | Path, extension: str = "png") -> Iterator[Image.Image]:
    """The RGB images in a folder, one by one, in natural order of their names, all of one size.

    Raises ValueError, naming the file, for one that is unreadable or of another size than the first.
    """
    suffix = f".{extension.lstrip('.').lower()}"
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    chosen = [name for name in names if os.path.splitext(name)[1].lower() == suffix]
    if not chosen:
        others = sorted({end for name in names if (end := os.path.splitext(name)[1])})
        held = f" (it holds {', '.join(others)} files: see --extension)" if others else ""
        raise UserError(f"{folder}: no {suffix} frames in this folder{held}")
    size: tuple[int, int] | None = None
    for name in sorted(chosen, key=natural):
        path = os.path.join(folder, name)
        image = _open_image(path)
        size = size or image.size
        if image.size != size:
            found, first = _size(image.size[::-1]), _size(size[::-1])
            raise UserError(f"{path}: is {found}, the frames before it are {first}")
        yield image


def _open_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                # Pillow clips 16 bits to 8; the high byte is what a viewer shows.
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise UserError(f"{path}: its numbers have 32 bits, and no known white; write 8 or 16 bits")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        if str(error).startswith(path):
            raise
        raise UserError(f"{path}: not a readable image") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise what they like
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: not a readable image ({error.strerror})") from None
        raise UserError(f"{path}: not a readable image") from None


def iter_frames(folder: str | Path, extension: str = "png") -> Iterator[Frames]:
    """The images [H, W, 3] in a folder, one by one. Raises ValueError as `iter_images`."""
    for image in iter_images(folder, extension):
        yield np.asarray(image)


def read_frames(folder: str | Path, extension: str = "png") -> Frames:
    """All images of a folder, uint8 [T, H, W, 3]. Raises ValueError as `iter_images`."""
    return np.stack(list(iter_frames(folder, extension)))


def resize(frames: Frames, size: int) -> Frames:
    """Crop [..., H, W, 3] to the square in its centre, then scale it to [..., size, size, 3] (antialiased Lanczos)."""
    *batch, height, width, _ = frames.shape
    fit = Fit(size)
    scaled = [fit.array(frame) for frame in frames.reshape(-1, height, width, 3)]
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
