"""Small plots as inline SVG, drawn fast enough to be redrawn while a search runs; colors follow the theme of the page.

matplotlib, which draws the finished report, takes seconds for the figures of 200 trials.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import LogLocator, MaxNLocator

from raypipe.search.records import is_finite

WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 24, 24
"""Margins around the plotted area, for tick labels and the title."""
TICKS = 6
"""Largest number of ticks of a log scale that all get a label."""
ABOVE = 3.0
"""Scores whose distance from the best is this multiple of that of the median are drawn at the top edge."""


@dataclass(frozen=True)
class Mark:
    """A trial in a scatter plot. y: None if it failed, drawn at the top edge. series: number of its color, from 1.

    kind: `finished`, `stopped`, `running`, `interrupted` or `failed`.
    """

    x: Any
    y: float | None
    kind: str
    series: int
    name: str


@dataclass(frozen=True)
class Curve:
    """The course of a training. x, y [n]. marked: draw its points too."""

    x: Sequence[float]
    y: Sequence[float]
    series: int
    name: str
    marked: bool = False


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels. ticks: values with their labels; values outside are clipped to the ends."""

    low: float
    high: float
    start: float
    end: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def __call__(self, value: float) -> float:
        at, low, high = (_log(v) if self.log else v for v in (value, self.low, self.high))
        share = min(1.0, max(0.0, (at - low) / (high - low)))
        return round(self.start + share * (self.end - self.start), 1)


def scatter(title: str, marks: Sequence[Mark], *, log: bool = False, choices: Sequence[Any] | None = None) -> Markup:
    """Objective against the values of an axis. choices: its values, if they are not numbers to scale. log: see `Axis`.

    On a log scale, 0 lies at the left edge.
    """
    if choices is not None:
        names = [str(choice) for choice in choices]
        names += sorted({str(mark.x) for mark in marks} - set(names))
        ticks = [(float(i), name if len(name) < 14 else f"{name[:12]}…") for i, name in enumerate(names)]
        across = Scale(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT, ticks)
        places = [names.index(str(mark.x)) + _spread(i, len(marks)) for i, mark in enumerate(marks)]
    else:
        across, places = _across([float(mark.x) for mark in marks], log)
    up = _up([mark.y for mark in marks if mark.y is not None])
    shapes = [_mark(across(x), up(up.high if m.y is None else m.y), m) for x, m in zip(places, marks, strict=True)]
    return _frame(title, across, up, shapes)


def curves(title: str, lines: Sequence[Curve], *, log: bool = False) -> Markup:
    """Curves over training steps. log: draw y on a log scale, where all values are positive."""
    values = [y for line in lines for y in line.y]
    log = log and min(values) > 0 and max(values) > 20 * min(values)
    across = _scale(0.0, 1.03 * max(x for line in lines for x in line.x), LEFT, WIDTH - RIGHT)
    up = _scale(min(values), max(values), HEIGHT - BOTTOM, TOP, log=True) if log else _up(values)
    return _frame(title, across, up, [_curve(line, across, up) for line in lines])


def _across(values: Sequence[float], log: bool) -> tuple[Scale, list[float]]:
    """The scale of an axis, and the places of the values on it."""
    positive = [value for value in values if value > 0]
    if not log or not positive:
        return _scale(min(values), max(values), LEFT, WIDTH - RIGHT, pad=0.06), list(values)
    low, high = min(positive) / 1.15, max(positive) * 1.15
    zero = low * (low / high) ** 0.15
    has_zero = len(positive) < len(values)
    scale = _scale(zero if has_zero else low, high, LEFT, WIDTH - RIGHT, log=True)
    ticks = [tick for tick in scale.ticks if tick[0] >= low] + ([(zero, "0")] if has_zero else [])
    scale = Scale(scale.low / 1.05, scale.high, scale.start, scale.end, ticks, True)
    return scale, [value if value > 0 else zero for value in values]


def _up(values: Sequence[float]) -> Scale:
    """The vertical scale of scores; bad ones are cut off, so that the good ones can be told apart."""
    if not values:
        return Scale(0.0, 1.0, HEIGHT - BOTTOM, TOP, [])
    ordered = sorted(values)
    low, median = ordered[0], ordered[len(ordered) // 2]
    high = ordered[-1] if median == low else min(ordered[-1], low + ABOVE * (median - low))
    return _scale(low, high, HEIGHT - BOTTOM, TOP, pad=0.08)


def _scale(low: float, high: float, start: float, end: float, *, log: bool = False, pad: float = 0.0) -> Scale:
    if log:
        high = max(high, low * 1.01)
        found = [float(tick) for tick in LogLocator(subs=(1, 2, 5)).tick_values(low, high) if low <= tick <= high]
        ticks = found if len(found) <= TICKS else [t for t in found if f"{t:e}"[0] == "1"] or found[::2]
    else:
        room = pad * (high - low) or (abs(high) or 1.0) * 0.05 * (low == high)
        low, high = low - room, high + room
        found = [float(tick) for tick in MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
        ticks = [tick for tick in found if low <= tick <= high]
    return Scale(low, high, start, end, [(tick, f"{tick:.4g}".replace("-", "−")) for tick in ticks], log)


def _log(value: float) -> float:
    return math.log10(value)


def _spread(i: int, count: int) -> float:
    """A sideways shift, so that trials with the same choice do not hide each other."""
    return 0.0 if count < 3 else 0.24 * ((i * 0.618) % 1.0 - 0.5) * 2


def _frame(title: str, across: Scale, up: Scale, shapes: Sequence[str]) -> Markup:
    """The plot with its axes."""
    bottom = HEIGHT - BOTTOM
    grid = [f'<path class="grid" d="M{LEFT} {up(tick)}H{WIDTH - RIGHT}"/>' for tick, _ in up.ticks]
    labels = [f'<text x="{LEFT - 6}" y="{up(tick) + 4:g}" class="end">{text}</text>' for tick, text in up.ticks]
    labels += [
        f'<text x="{across(tick)}" y="{HEIGHT - 7}" class="mid">{escape(text)}</text>' for tick, text in across.ticks
    ]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text x="0" y="13" class="title">{escape(title)}</text>',
        *grid,
        f'<path class="base" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>',
        *labels,
        *shapes,
        "</svg>",
    ]
    return Markup("".join(parts))


def _mark(x: float, y: float, mark: Mark) -> str:
    score = mark.kind if mark.y is None else f"{mark.y:.3f}, {mark.kind}"
    tip = f"<title>{escape(mark.name)}: {score}</title>"
    if mark.kind == "failed" or mark.y is None:
        shape = f"M{x - 3.5:g} {y - 3.5:g}l7 7m-7 0l7-7"
        return f'<path class="s{mark.series} line" d="{shape}">{tip}</path>'
    kind = "full" if mark.kind == "finished" else "hollow"
    return f'<circle class="s{mark.series} {kind}" cx="{x:g}" cy="{y:g}" r="4">{tip}</circle>'


def _curve(line: Curve, across: Scale, up: Scale) -> str:
    points = [(across(x), up(y)) for x, y in zip(line.x, line.y, strict=True) if is_finite(y)]
    tip = f"<title>{escape(line.name)}</title>"
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    marked = points if line.marked else ()
    dots = "".join(f'<circle class="s{line.series} full" cx="{x:g}" cy="{y:g}" r="2.5"/>' for x, y in marked)
    return f'<g class="curve"><path class="s{line.series} line" d="M{path}">{tip}</path>{dots}</g>'
