"""Read, resize and write video files and folders of images."""

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
    """Sort key for natural order: frame_2 comes before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)] + [(-1, name)]


def decode(path: str | Path, threads: int = 0, note: Callable[[str], None] | None = None) -> Iterator[av.VideoFrame]:
    """Decode the frames of a video file one by one; all have the same size.

    threads: number of decoder threads, 0 for one per processor. note: called with a message if the header announces
    more frames than the file contains. Raises UserError, naming the file, if it cannot be decoded completely or is
    truncated.
    """
    shape: tuple[int, int] | None = None
    count = 0
    try:
        # Open with FFmpeg before the size check: it gives a clear error for a file that is no video.
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: contains no video stream")
            stated, held = stated_size(Path(path)), Path(path).stat().st_size
            if stated is not None and stated > held:
                raise UserError(f"{path}: truncated: it has {held} bytes, but its header says {stated}")
            stream = container.streams.video[0]
            stream.thread_type, stream.thread_count = "AUTO", threads
            # By default FFmpeg conceals decoding errors, so a damaged file would yield smeared frames.
            stream.codec_context.options = {"err_detect": "explode"}
            announced = stream.frames
            for frame in container.decode(stream):
                shape = shape or (frame.height, frame.width)
                if (frame.height, frame.width) != shape:
                    found = _size((frame.height, frame.width))
                    raise UserError(f"{path}: frame {count} is {found}, but the first frame is {_size(shape)}")
                count += 1
                yield frame
    except (av.FFmpegError, OSError) as error:
        raise UserError(f"{path}: not a readable video ({error.strerror or error})") from None
    if count == 0:
        raise UserError(f"{path}: no frame of this video can be decoded")
    if note is not None and announced > count:
        note(f"{path}: its header announces {announced} frames, but it contains {count}")


def iter_video(path: str | Path) -> Iterator[Frames]:
    """The frames of a video file one by one, uint8 RGB [H, W, 3], rotated upright. Raises UserError as `decode`."""
    for frame in decode(path):
        yield rgb(frame)


def iter_images(folder: str | Path, extension: str = "png") -> Iterator[Image.Image]:
    """The images in a folder as RGB, one by one, in natural order of their names; all have the same size.

    Raises UserError, naming the file, if an image is unreadable or differs in size from the first.
    """
    suffix = f".{extension.lstrip('.').lower()}"
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    chosen = [name for name in names if os.path.splitext(name)[1].lower() == suffix]
    if not chosen:
        others = sorted({end for name in names if (end := os.path.splitext(name)[1])})
        held = f" (it contains {', '.join(others)} files; see --extension)" if others else ""
        raise UserError(f"{folder}: no {suffix} frames in this folder{held}")
    size: tuple[int, int] | None = None
    for name in sorted(chosen, key=natural):
        path = os.path.join(folder, name)
        image = _open_image(path)
        size = size or image.size
        if image.size != size:
            found, first = _size(image.size[::-1]), _size(size[::-1])
            raise UserError(f"{path}: is {found}, but the frames before it are {first}")
        yield image


def _open_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                # Pillow would clip 16-bit values to 255; image viewers show the high byte.
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise UserError(f"{path}: has 32-bit values, whose white level is unknown; save it with 8 or 16 bits")
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        if str(error).startswith(path):
            raise
        raise UserError(f"{path}: not a readable image") from None
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions for damaged files
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: not a readable image ({error.strerror})") from None
        raise UserError(f"{path}: not a readable image") from None


def iter_frames(folder: str | Path, extension: str = "png") -> Iterator[Frames]:
    """The images in a folder one by one, uint8 RGB [H, W, 3]. Raises UserError as `iter_images`."""
    for image in iter_images(folder, extension):
        yield np.asarray(image)


def resize(frames: Frames, size: int) -> Frames:
    """Crop frames [..., H, W, 3] to the central square and scale it to [..., size, size, 3] (antialiased Lanczos)."""
    *batch, height, width, _ = frames.shape
    fit = Fit(size)
    scaled = [fit.array(frame) for frame in frames.reshape(-1, height, width, 3)]
    return np.stack(scaled).reshape(*batch, size, size, 3)


def write_video(path: str | Path, frames: Frames, fps: float) -> None:
    """Write uint8 [T, H, W, 3] as mp4 (H.264, yuv420p). Odd sides are padded by one pixel, as yuv420p requires."""
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
    """Write uint8 [T, H, W, 3] as a looping GIF. Frame times are rounded to hundredths of a second, at least two."""
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
