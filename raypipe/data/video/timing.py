"""Resample frames to another frame rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

from raypipe.common.errors import UserError

T = TypeVar("T")

LONGEST_GAP = 60.0
"""Seconds between two frames above which the times in a file are not believed."""
LATE = 0.25
"""Part of an output frame's interval by which an input frame may be late."""


def resample(frames: Iterator[tuple[float, T]], fps: float) -> Iterator[T]:
    """Repeat or drop frames so that `fps` frames are left per second: at every time, the frame then shown.

    frames: time in seconds and content of each frame. The last frame lasts as long as the one before it. Raises
    UserError if two frames are more than `LONGEST_GAP` apart.
    """
    first = next(frames, None)
    if first is None:
        return
    start, held = first
    previous, lasting, slot = start, 0.0, 0
    for time, frame in frames:
        if abs(time - previous) > LONGEST_GAP:
            raise UserError(f"its times jump by {time - previous:.0f} s, so --fps cannot resample it")
        if time > previous:
            lasting = time - previous
        until = _slot(time - start, fps)
        for _ in range(slot, until):
            yield held
        slot, previous, held = max(slot, until), time, frame
    for _ in range(max(slot == 0, _slot(previous + lasting - start, fps) - slot)):
        yield held


def _slot(seconds: float, fps: float) -> int:
    """Number of the first output frame at or after a time."""
    # Many containers round times to milliseconds, so a frame may come somewhat late for its slot.
    return max(0, math.ceil(seconds * fps - LATE))
