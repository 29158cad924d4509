"""Resize frames, and write video files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from raypipe.common.files import atomic_path
from raypipe.data.video.fitting import Fit
from raypipe.data.video.fitting import Frames as Frames


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
