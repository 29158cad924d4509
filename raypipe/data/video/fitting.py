"""Crop or pad frames to a square and scale them to a given size, antialiased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

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

    def region(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The region of a frame that is kept: left, top, right, bottom."""
        if self.mode == "pad":
            return 0, 0, width, height
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    def extent(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the scaled region in the square."""
        if self.mode == "crop":
            return self.size, self.size
        longest = max(width, height)
        return max(1, round(width * self.size / longest)), max(1, round(height * self.size / longest))

    def image(self, image: Image.Image) -> Frames:
        """Fit an RGB image to [size, size, 3] with Pillow's Lanczos filter."""
        box, extent = self.region(*image.size), self.extent(*image.size)
        # Not resize(box=...): its filter reads pixels outside of the box, so the cropped parts would bleed in.
        part = image if box == (0, 0, *image.size) else image.crop(box)
        if part.size != extent:
            part = part.resize(extent, Image.Resampling.LANCZOS, reducing_gap=3.0)
        return self.place(np.asarray(part))

    def array(self, frame: Frames) -> Frames:
        """Fit a frame [H, W, 3] to [size, size, 3]."""
        left, top, right, bottom = self.region(frame.shape[1], frame.shape[0])
        if (right - left, bottom - top) == self.extent(frame.shape[1], frame.shape[0]):
            return self.place(frame[top:bottom, left:right])
        return self.image(Image.fromarray(frame))

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

    def __init__(self, fit: Fit) -> None:
        self.fit = fit
        self._graph: Any = None
        self._made_for: tuple[Any, ...] = ()

    def __call__(self, frame: av.VideoFrame) -> Frames:
        """Fit one frame to [size, size, 3], rotated upright."""
        box, extent = self.fit.region(frame.width, frame.height), self.fit.extent(frame.width, frame.height)
        if frame.format.is_rgb or (box[2] - box[0], box[3] - box[1]) == extent:
            return self.fit.array(rgb(frame))
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._made_for:
            self._graph, self._made_for = self._build(frame, box, extent), kind
        # FFmpeg filters expect increasing timestamps, but a file's may be missing or repeated; none are needed here.
        frame.pts = None
        self._graph.push(frame)
        return self.fit.place(upright(self._graph.pull().to_ndarray(), frame))

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


def rgb(frame: av.VideoFrame) -> Frames:
    """Convert a decoded frame to RGB [H, W, 3], rotated upright."""
    return upright(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), frame)


def upright(image: Frames, frame: av.VideoFrame) -> Frames:
    """Rotate a frame's image as the file's metadata says; phones often store rotated video."""
    return np.rot90(image, frame.rotation // 90) if frame.rotation else image
