"""Crop or pad frames to a square and scale them to a given size, antialiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypipe.data.video.images import Levels, over_black

Frames = NDArray[np.uint8]
MODES = ("crop", "pad")


@dataclass(frozen=True)
class Fit:
    """Maps frames to squares.

    size: side of the square in pixels. mode: `crop` keeps the central square, `pad` keeps the whole frame and adds
    black bars. grey: convert to luma (ITU-R BT.601), stored as three equal channels. A frame that needs no scaling
    keeps its exact values.
    """

    size: int
    mode: str = "crop"
    grey: bool = False

    def region(self, width: int, height: int, aspect: float = 1) -> tuple[int, int, int, int]:
        """The region of a frame that is kept: left, top, right, bottom. aspect: width of a pixel per its height."""
        if self.mode == "pad":
            return 0, 0, width, height
        side = min(width * aspect, height)
        across, down = max(1, round(side / aspect)), max(1, round(side))
        left, top = (width - across) // 2, (height - down) // 2
        return left, top, left + across, top + down

    def extent(self, width: int, height: int, aspect: float = 1) -> tuple[int, int]:
        """Width and height of the scaled region in the square."""
        if self.mode == "crop":
            return self.size, self.size
        longest = max(width * aspect, height)
        return max(1, round(width * aspect * self.size / longest)), max(1, round(height * self.size / longest))

    def image(self, image: Image.Image, aspect: float = 1) -> Frames:
        """Fit an RGB image to [size, size, 3] with Pillow's Lanczos filter."""
        box, extent = self.region(*image.size, aspect), self.extent(*image.size, aspect)
        # Not resize(box=...): its filter reads pixels outside of the box, so the cropped parts would bleed in.
        part = image if box == (0, 0, *image.size) else image.crop(box)
        if part.size != extent:
            part = part.resize(extent, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return self.place(np.asarray(part))

    def array(self, frame: Frames, aspect: float = 1) -> Frames:
        """Fit a frame [H, W, 3] to [size, size, 3]."""
        height, width = frame.shape[:2]
        left, top, right, bottom = self.region(width, height, aspect)
        if (right - left, bottom - top) == self.extent(width, height, aspect):
            return self.place(frame[top:bottom, left:right])
        return self.image(Image.fromarray(frame), aspect)

    def place(self, part: Frames) -> Frames:
        """Put the scaled region [h, w, 3] into the square; convert it to grey if `grey`."""
        if self.grey:
            luma = np.asarray(Image.fromarray(np.ascontiguousarray(part)).convert("L"))
            part = np.repeat(luma[..., None], 3, axis=-1)
        height, width = part.shape[:2]
        if height == width == self.size:
            return np.ascontiguousarray(part)
        square = np.zeros((self.size, self.size, 3), np.uint8)
        top, left = (self.size - height) // 2, (self.size - width) // 2
        square[top : top + height, left : left + width] = part
        return square


class VideoFit:
    """`Fit` for the decoded frames of one video.

    FFmpeg crops and scales the planar YUV frame before converting it to RGB. This is three times as fast as Pillow on
    the RGB frame, and differs by a few grey levels. RGB video uses Pillow, since FFmpeg would convert it to YUV.
    """

    def __init__(self, fit: Fit, aspect: float = 1, levels: Levels | None = None) -> None:
        """aspect: width of a pixel per its height. levels: converts grey frames of 16 bits."""
        self.fit, self.aspect = fit, float(aspect)
        self.levels = levels or Levels()
        self._graph: Any = None
        self._made_for: tuple[Any, ...] = ()
        self._padded: bool | None = None

    def __call__(self, frame: av.VideoFrame) -> Frames:
        """Fit one frame to [size, size, 3], rotated upright."""
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._made_for:
            self._graph, self._made_for = self._choose(frame), kind
        if self._graph is None:
            return self.fit.array(*self._upright(self._rgb(frame), frame))
        # FFmpeg filters expect increasing timestamps, but a file's may be missing or repeated; none are needed here.
        frame.pts = None
        self._graph.push(frame)
        return self.fit.place(upright(self._graph.pull().to_ndarray(), frame))

    def _choose(self, frame: av.VideoFrame) -> Any:
        """The filters for frames like this one; None if they are fitted by Pillow, or need no scaling."""
        shape = frame.width, frame.height, self.aspect
        box, extent = self.fit.region(*shape), self.fit.extent(*shape)
        by_pillow = frame.format.is_rgb or frame.format.name.startswith("gray16") or _has_alpha(frame)
        return None if by_pillow or (box[2] - box[0], box[3] - box[1]) == extent else self._build(frame, box, extent)

    def _rgb(self, frame: av.VideoFrame) -> Frames:
        if frame.format.name.startswith("gray16"):
            grey = self.levels.scaled(frame.to_ndarray(format="gray16le"))
            return np.repeat(grey[..., None], 3, -1)
        samples = frame.format
        deep = samples.is_rgb and samples.components[0].bits == 16 and "f16" not in samples.name
        if _has_alpha(frame):
            return self._over_black(frame, deep)
        if deep:
            return self.levels.scaled(frame.to_ndarray(format="rgb48le"))
        return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)

    def _over_black(self, frame: av.VideoFrame, deep: bool) -> Frames:
        pixels: NDArray[Any] = frame.to_ndarray(format="rgba64le" if deep else "rgba")
        opaque = 65535 if deep else 255
        if self._padded is None:
            # Some programs write a fourth byte that is not transparency, and always 0.
            self._padded = not pixels[..., 3].any()
        if self._padded:
            pixels[..., 3] = opaque
        self.levels.transparent |= bool((pixels[..., 3] != opaque).any())
        seen = over_black(pixels)
        return self.levels.scaled(seen) if deep else seen

    def _upright(self, image: Frames, frame: av.VideoFrame) -> tuple[Frames, float]:
        """The rotated image and the aspect ratio of its pixels."""
        lying = _turns(frame)[0] % 2 == 1
        return upright(image, frame), 1 / self.aspect if lying else self.aspect

    def _build(self, frame: av.VideoFrame, box: tuple[int, int, int, int], extent: tuple[int, int]) -> Any:
        left, top, right, bottom = box
        graph = av.filter.Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        flags = "lanczos+accurate_rnd+full_chroma_inp+full_chroma_int"
        graph.link_nodes(
            source,
            graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1"),
            graph.add("scale", f"{extent[0]}:{extent[1]}:flags={flags}"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        return graph


def upright(image: Frames, frame: av.VideoFrame) -> Frames:
    """Rotate and mirror a frame's image as the file's display matrix says; phones often store rotated video."""
    quarters, mirrored = _turns(frame)
    return np.rot90(image[:, ::-1] if mirrored else image, quarters)


def _turns(frame: av.VideoFrame) -> tuple[int, bool]:
    """Quarter turns to the left, after mirroring left and right or not, by which a frame is shown."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return round(frame.rotation / 90) % 4, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    mirrored = a * d - b * c < 0
    sign = -1 if mirrored else 1  # without the mirroring, a rotation is left
    return round(math.degrees(math.atan2(-sign * b, sign * a)) / 90) % 4, mirrored


def _has_alpha(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)
