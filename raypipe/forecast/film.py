"""Pictures of a forecast: films of truth and members side by side, and strips of frames.

Known frames have a green rim, predicted ones an orange one.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from raypipe.data.video.io import Frames

KNOWN, PREDICTED, PAPER = (58, 158, 103), (224, 134, 54), (34, 36, 40)
GAP = 2
"""Pixels of a frame between panels, and around them."""
FILM_MEMBERS, STRIP_FRAMES, FILM_FPS = 3, 10, 5
"""Of the samples on the report's page."""


def forecast_film(context: Frames, members: Frames, interpolate: int = 1, truth: Frames | None = None) -> Frames:
    """A film of panels side by side: the truth, where it is known, then every member.

    context: uint8 [K, H, W, 3], the given frames; members: [M, n * interpolate, H, W, 3], what was predicted;
    truth: [n, H, W, 3], what followed. One film frame is 1 / interpolate of a frame interval; whole frames are
    held where there are none in between.

    Returns uint8 [(K - 1 + n) * interpolate + 1, H', W', 3]: all panels are enlarged by one whole factor.
    """
    shape, lead = members.shape[2:], (len(context) - 1) * interpolate + 1
    known = _hold(context, interpolate)
    panels = [[*_rim(known, KNOWN), *_rim(member, PREDICTED)] for member in members]
    if truth is not None:
        panels.insert(0, _rim(_hold(np.concatenate([context, truth]), interpolate), KNOWN))
    factor = max(1, min(192 // shape[0], 1920 // (shape[1] * len(panels))))
    length = lead + members.shape[1]
    return np.stack([enlarge(_row([panel[t] for panel in panels]), factor) for t in range(length)])


def strip(frames: Frames, known: int = 0) -> Frames:
    """Frames [n, H, W, 3] in a row, one image [H', W', 3]; the first `known` of them are given ones."""
    return _row([*_rim(frames[:known], KNOWN), *_rim(frames[known:], PREDICTED)])


def enlarge(image: Frames, factor: int) -> Frames:
    """Every pixel [H, W, 3] as factor x factor of them."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _hold(frames: Frames, interpolate: int) -> Frames:
    """Each frame until the next: [n, ...] -> [(n - 1) * interpolate + 1, ...]."""
    return frames.repeat(interpolate, axis=0)[: (len(frames) - 1) * interpolate + 1]


def _rim(frames: Frames, color: tuple[int, int, int]) -> list[Frames]:
    """Each frame with a thin rim around it: no pixel of it is hidden."""
    width = max(1, frames.shape[1] // 48) if len(frames) else 1
    rimmed = []
    for frame in frames:
        image = np.empty((frame.shape[0] + 2 * width, frame.shape[1] + 2 * width, 3), np.uint8)
        image[:] = color
        image[width:-width, width:-width] = frame
        rimmed.append(image)
    return rimmed


def _row(images: Sequence[Frames]) -> Frames:
    height, width, _ = images[0].shape
    page = np.empty((height + 2 * GAP, len(images) * (width + GAP) + GAP, 3), np.uint8)
    page[:] = PAPER
    for i, image in enumerate(images):
        left = GAP + i * (width + GAP)
        page[GAP : GAP + height, left : left + width] = image
    return page


@dataclass(frozen=True)
class Strip:
    label: str
    image: str


@dataclass(frozen=True)
class Sample:
    """A forecast in pictures, as data URIs."""

    name: str
    film: str
    members: int
    strips: list[Strip]


def read_sample(path: Path) -> Sample:
    """The film and strips of a `samples/*.npz`."""
    with np.load(path, allow_pickle=False) as kept:
        truth, members, between = kept["truth"], kept["prediction"], kept["interpolated"]
        given, interpolate = int(kept["given"]), int(kept["interpolate"])
    horizon = members.shape[1]
    context, rest = truth[:given], truth[given : given + horizon]
    shown = members[:FILM_MEMBERS]
    moving = forecast_film(context, shown, truth=rest if len(rest) == horizon else None)
    steps = np.unique(np.linspace(0, horizon - 1, min(horizon, STRIP_FRAMES)).round().astype(int))
    rows = [
        ("truth", np.concatenate([context[-1:], rest[steps[steps < len(rest)]]]), len(rest) + 1),
        ("predicted", np.concatenate([context[-1:], members[0, steps]]), 1),
    ]
    if interpolate > 1:
        rows.append((f"at 1/{interpolate} steps", np.concatenate([context[-1:], between[: len(steps)]]), 1))
    strips = [Strip(label, _png(enlarge(strip(frames, known), 2))) for label, frames, known in rows]
    return Sample(path.stem, _gif(moving), len(shown), strips)


def _png(image: Frames) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return _uri("image/png", buffer)


def _gif(frames: Frames) -> str:
    images, buffer = [Image.fromarray(frame) for frame in frames], BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=round(1000 / FILM_FPS), loop=0, optimize=True
    )
    return _uri("image/gif", buffer)


def _uri(kind: str, buffer: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
