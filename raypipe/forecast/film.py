"""Images of a forecast: films of truth and ensemble members side by side, and strips of frames.

Known frames have a green border, predicted ones an orange border, and those that a rival predicted a blue one.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raypipe.data.video.io import Frames

KNOWN, PREDICTED, RIVAL, PAPER = (58, 158, 103), (224, 134, 54), (72, 126, 214), (34, 36, 40)
"""RGB colors of the borders and of the background."""
GAP = 2
"""Width of the background between and around the panels, in pixels before enlargement."""
FILM_MEMBERS, STRIP_FRAMES, FILM_FPS = 3, 10, 5
"""For samples in the report: members in a film, predicted frames in a strip, and frames per second of a film."""


def forecast_film(
    context: Frames,
    members: Frames,
    interpolate: int = 1,
    truth: Frames | None = None,
    color: tuple[int, int, int] = PREDICTED,
) -> Frames:
    """Film with one panel for the truth, if given, and one for each member, side by side.

    context: uint8 [K, H, W, 3], given frames. members: uint8 [M, n * interpolate, H, W, 3], predicted frames.
    truth: uint8 [n, H, W, 3], true frames. The film has `interpolate` frames per frame interval, in which each given
    and true frame is repeated. color: RGB, of the border of predicted frames.

    Returns uint8 [(K - 1 + n) * interpolate + 1, H', W', 3], enlarged by an integer factor.
    """
    shape, lead = members.shape[2:], (len(context) - 1) * interpolate + 1
    known = _hold(context, interpolate)
    panels = [[*_rim(known, KNOWN), *_rim(member, color)] for member in members]
    if truth is not None:
        panels.insert(0, _rim(_hold(np.concatenate([context, truth]), interpolate), KNOWN))
    factor = max(1, min(192 // shape[0], 1920 // (shape[1] * len(panels))))
    length = lead + members.shape[1]
    return np.stack([enlarge(_row([panel[t] for panel in panels]), factor) for t in range(length)])


def strip(frames: Frames, known: int = 0) -> Frames:
    """Image [H', W', 3] of frames [n, H, W, 3] in a row; the first `known` of them get the border of known frames."""
    return _row([*_rim(frames[:known], KNOWN), *_rim(frames[known:], PREDICTED)])


def enlarge(image: Frames, factor: int) -> Frames:
    """Repeat every pixel of [H, W, 3]: returns [factor * H, factor * W, 3]."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _hold(frames: Frames, interpolate: int) -> Frames:
    """Repeat each frame but the last: [n, ...] -> [(n - 1) * interpolate + 1, ...]."""
    return frames.repeat(interpolate, axis=0)[: (len(frames) - 1) * interpolate + 1]


def _rim(frames: Frames, color: tuple[int, int, int]) -> list[Frames]:
    """Add a thin border around each frame."""
    width = max(1, frames.shape[1] // 48) if len(frames) else 1
    rimmed = []
    for frame in frames:
        image = np.empty((frame.shape[0] + 2 * width, frame.shape[1] + 2 * width, 3), np.uint8)
        image[:] = color
        image[width:-width, width:-width] = frame
        rimmed.append(image)
    return rimmed


def _row(images: Sequence[Frames]) -> Frames:
    """Images of equal size in a row, on the background."""
    height, width, _ = images[0].shape
    page = np.empty((height + 2 * GAP, len(images) * (width + GAP) + GAP, 3), np.uint8)
    page[:] = PAPER
    for i, image in enumerate(images):
        left = GAP + i * (width + GAP)
        page[GAP : GAP + height, left : left + width] = image
    return page


@dataclass(frozen=True)
class Strip:
    """A row of frames for the report. image: data URI of a PNG."""

    label: str
    image: str


@dataclass(frozen=True)
class Sample:
    """The images of a forecast for the report.

    film: data URI of a GIF. members: members in the film. rival: name and integration steps of the rival whose members
    are shown below them; None if none is.
    """

    name: str
    film: str
    members: int
    strips: list[Strip]
    rival: tuple[str, int] | None


@dataclass(frozen=True)
class Case:
    """A window that was chosen by its score. score, mean: its CRPS, and that of all `windows` windows, over the mean of
    persistence's."""

    name: str
    clip: str
    start: int
    score: float
    mean: float
    windows: int
    strips: list[Strip]


def read_case(path: Path) -> Case:
    """Draw the strips of the truth and of each member of a `samples/cases/*.npz` file."""
    with np.load(path, allow_pickle=False) as kept:
        truth, members, given = kept["truth"], kept["prediction"], int(kept["given"])
        clip, start, windows = str(kept["clip"]), int(kept["start"]), int(kept["windows"])
        score, mean = float(kept["score"]), float(kept["mean"])
    steps = spread(members.shape[1])
    last = truth[given - 1 : given]
    rows = [("truth", np.concatenate([last, truth[given:][steps]]), len(steps) + 1)]
    rows += [(f"member {m}", np.concatenate([last, member[steps]]), 1) for m, member in enumerate(members, 1)]
    return Case(path.stem, clip, start, score, mean, windows, [_strip(*row) for row in rows])


def spread(horizon: int) -> NDArray[np.int64]:
    """At most `STRIP_FRAMES` of the predicted frames, evenly spread, with the last one."""
    return np.unique(np.linspace(0, horizon - 1, min(horizon, STRIP_FRAMES)).round().astype(int))


def _strip(label: str, frames: Frames, known: int) -> Strip:
    return Strip(label, _png(enlarge(strip(frames, known), 2)))


def read_sample(path: Path) -> Sample:
    """Draw the film and the strips of a `samples/*.npz` file."""
    with np.load(path, allow_pickle=False) as kept:
        truth, members, between = kept["truth"], kept["prediction"], kept["interpolated"]
        given, interpolate = int(kept["given"]), int(kept["interpolate"])
        others = kept.get("rival")
        rival = None if others is None else (str(kept["rival_name"]), int(kept["rival_steps"]))
    horizon = members.shape[1]
    context, rest = truth[:given], truth[given : given + horizon]
    shown, future = members[:FILM_MEMBERS], rest if len(rest) == horizon else None
    moving = forecast_film(context, shown, truth=future)
    if others is not None:
        below = forecast_film(context, others[: len(shown)], truth=future, color=RIVAL)
        moving = np.concatenate([moving, below], axis=1)
    steps = spread(horizon)
    rows = [
        ("truth", np.concatenate([context[-1:], rest[steps[steps < len(rest)]]]), len(rest) + 1),
        ("predicted", np.concatenate([context[-1:], members[0, steps]]), 1),
    ]
    if interpolate > 1:
        rows.append((f"every 1/{interpolate} frame", np.concatenate([context[-1:], between[: len(steps)]]), 1))
    return Sample(path.stem, _gif(moving), len(shown), [_strip(*row) for row in rows], rival)


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
