"""The figures of the report, as inline SVG. Their colors are CSS variables, so they follow the theme of the page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Placeholder colors for matplotlib. `to_svg` replaces each by its CSS variable in `_VARIABLES`.
INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205", "#010206")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    color: f"series-{i + 1}" for i, color in enumerate(SERIES)
}
_NICE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Candidates for the ticks of the noise axis."""


@dataclass(frozen=True)
class Line:
    """A curve y [n] over x [n]. strength: its opacity. failed: draw a cross at its last point."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    strength: float = 1.0
    dashed: bool = False
    bold: bool = False
    failed: bool = False


@dataclass(frozen=True)
class Point:
    """A trial in the plot of objective against noise level. se: standard error of the objective.

    kind: a key of `_MARKERS`, or `failed`, for which objective and se are ignored. note: text next to the point.
    """

    noise_std: float
    objective: float
    se: float
    loss: str
    kind: str
    note: str = ""


@dataclass(frozen=True)
class Cost:
    """A trial in the plot of objective against cost. nfe: network evaluations per frame. best: on the Pareto front."""

    nfe: float
    objective: float
    loss: str
    name: str
    best: bool


@dataclass(frozen=True)
class _Marker:
    shape: str
    size: float
    filled: bool


_MARKERS: Mapping[str, _Marker] = {
    "stopped": _Marker("o", 6.5, False),
    "finished": _Marker("o", 7, True),
    "refit": _Marker("D", 5.5, True),
}
_CROSS: Mapping[str, Any] = {"markersize": 7.5, "markeredgewidth": 1.8}
"""Marker style of failed trials."""


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """A series color for each distinct name, in order of first appearance."""
    return {name: SERIES[i % len(SERIES)] for i, name in enumerate(dict.fromkeys(names))}


def by_step(lines: Sequence[Line]) -> str:
    """Plot of crps_ratio against the number of frames ahead; a line at 1 marks persistence."""
    figure = Figure(figsize=(10.4, 3.9))
    axes = _axes(figure, "frames ahead", "CRPS ratio")
    axes.axhline(1, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
    for line in lines:
        _draw(axes, replace(line, x=[step + 1 for step in range(len(line.y))]), marker="o")
    longest = max(len(line.y) for line in lines)
    axes.set_xlim(0.7, longest + 0.3)
    axes.set_xticks(range(1, longest + 1, max(1, longest // 12)))
    axes.set_ylim(bottom=0, top=max(1.08, *(1.05 * max(_finite(line.y), default=1) for line in lines)))
    axes.text(longest + 0.25, 1, "persistence", color=MUTED, fontsize=9, ha="right", va="bottom")
    _legend(axes)
    return to_svg(figure)


def search(points: Sequence[Point]) -> str:
    """Plot of objective against noise level s on a log axis; s = 0 is drawn left of an axis break."""
    figure = Figure(figsize=(10.4, 4))
    axes = _axes(figure, "noise level s", "CRPS ratio on validation")
    positive = [p.noise_std for p in points if p.noise_std > 0]
    low, high = (min(positive), max(positive)) if positive else (0.01, 0.1)
    zero = np.log10(low) - 0.4
    for loss, color in colors_of([p.loss for p in points]).items():
        for kind, marker in _MARKERS.items():
            chosen = [p for p in points if p.loss == loss and p.kind == kind]
            if chosen:
                axes.errorbar(
                    [_noise_position(p, zero) for p in chosen],
                    [p.objective for p in chosen],
                    yerr=[p.se if np.isfinite(p.se) else 0 for p in chosen],
                    fmt=marker.shape,
                    markersize=marker.size,
                    color=color,
                    markerfacecolor=color if marker.filled else PAPER,
                    markeredgecolor=PAPER if marker.filled else color,
                    markeredgewidth=0.8 if marker.filled else 1.6,
                    elinewidth=1.1,
                    alpha=None if marker.filled else 0.9,
                    label="_",
                    zorder=4 if kind == "refit" else 3,
                )
        failed = [_noise_position(p, zero) for p in points if p.loss == loss and p.kind == "failed"]
        top = axes.get_xaxis_transform()
        axes.plot(failed, [0.96] * len(failed), "x", color=color, transform=top, label="_", **_CROSS)
        axes.plot([], [], "o", color=color, markersize=7, label=loss)
    for point in points:
        if point.note:
            _note(axes, point.note, _noise_position(point, zero), point.objective)
    _noise_axis(axes, low, high, zero if any(p.noise_std == 0 for p in points) else None)
    axes.margins(y=0.12)
    if all(p.kind == "failed" for p in points):
        axes.set_yticks([])
    _legend(axes)
    return to_svg(figure)


def _noise_position(point: Point, zero: float) -> float:
    """Position of a trial on the noise axis, log10(s). zero: position of s = 0."""
    return float(np.log10(point.noise_std)) if point.noise_std > 0 else zero


def _note(axes: Axes, text: str, x: float, y: float) -> None:
    axes.annotate(
        text, (x, y), (8, -4), textcoords="offset points", fontsize=9, color=MUTED, va="top", parse_math=False
    )


def _noise_axis(axes: Axes, low: float, high: float, zero: float | None) -> None:
    """Set ticks at round noise levels. zero: position of s = 0, which gets a tick and an axis break; None: no s = 0."""
    ticks = {float(np.log10(v)): f"{v:g}" for v in _NICE if 0.9 * low <= v <= 1.1 * high}
    if len(ticks) < 2:
        ticks = {float(np.log10(v)): f"{v:.2g}" for v in (low, high)}
    left = np.log10(low) - 0.12
    if zero is not None:
        ticks[zero] = "0"
        left = zero - 0.12
        for shift in (-0.012, 0.012):
            axes.plot(
                [zero + 0.2 + shift - 0.012, zero + 0.2 + shift + 0.012],
                [-0.02, 0.02],
                color=MUTED,
                linewidth=1.2,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
                label="_",
            )
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlim(left, np.log10(high) + 0.12)


def front(points: Sequence[Cost]) -> str:
    """Plot of objective against network evaluations per frame. A line joins the Pareto front; other trials are pale."""
    figure = Figure(figsize=(10.4, 3.6))
    axes = _axes(figure, "network evaluations per frame", "CRPS ratio on validation")
    joined = sorted((p.nfe, p.objective) for p in points if p.best)
    axes.plot(*zip(*joined, strict=True), color=MUTED, linewidth=1.2, drawstyle="steps-post", label="_")
    for loss, color in colors_of([p.loss for p in points]).items():
        for best in (False, True):
            chosen = [p for p in points if p.loss == loss and p.best == best]
            x, y = [p.nfe for p in chosen], [p.objective for p in chosen]
            axes.plot(
                x, y, "o", color=color, markersize=7, alpha=1 if best else 0.4, label="_", zorder=4 if best else 3
            )
        axes.plot([], [], "o", color=color, markersize=7, label=loss)
    for point in points:
        if point.best:
            _note(axes, point.name, point.nfe, point.objective)
    axes.set_xscale("log", base=2)
    axes.set_xticks(costs := sorted({p.nfe for p in points}), [f"{cost:g}" for cost in costs])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.15)
    _legend(axes)
    return to_svg(figure)


def quality(lines: Sequence[Line], levels: Mapping[str, float]) -> str:
    """Plot of crps_ratio (y of each line) against network evaluations per frame (x, on a log axis).

    levels: crps_ratio of forecasts that take no network, by name: horizontal lines.
    """
    figure = Figure(figsize=(10.4, 4.4))
    axes = _axes(figure, "network evaluations per frame", "CRPS ratio")
    for line in lines:
        axes.plot(
            line.x, line.y, "o" if len(line.x) == 1 else "o-", color=line.color, linewidth=1.8, label=line.label,
            markersize=10 if line.bold else 5.5, zorder=4 if line.bold else 3,
        )  # fmt: skip
    costs = sorted({cost for line in lines for cost in line.x})
    axes.set_xscale("log", base=2)
    axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
    axes.minorticks_off()
    axes.margins(x=0.04)
    for name, level in levels.items():
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (2, 3)))
        axes.text(axes.get_xlim()[1], level, name, color=MUTED, fontsize=9, ha="right", va="bottom")
    values = [*levels.values(), *(y for line in lines for y in line.y)]
    axes.set_ylim(0.8 * min(values), 1.08 * max(values))
    _legend(axes)
    return to_svg(figure)


def curves(left: Sequence[Line], right: Sequence[Line]) -> str:
    """Plots of training loss (left) and of the objective at the rungs (right) against training step."""
    figure = Figure(figsize=(10.4, 3.4))
    for place, lines, name, marker in ((1, left, "training loss", None), (2, right, "CRPS ratio on validation", "o")):
        axes = _axes(figure, "training step", name, place=(1, 2, place))
        for line in lines:
            _draw(axes, line, marker=marker)
        values = _finite([y for line in lines for y in line.y])
        if marker is None and values and min(values) > 0 and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.set_xlim(left=0)
    _legend(figure.axes[0], unique=True)
    figure.subplots_adjust(wspace=0.2)
    return to_svg(figure)


def reliability(ranks: Sequence[Line], coverage: Sequence[Line], spread: Sequence[Line]) -> str:
    """Three plots of how reliable ensembles are; a thin line shows where a reliable one lies.

    ranks: x [M + 2], edges of the bins of a rank histogram from 0 to 1; y [M + 1], their densities. coverage: x, levels
    of central intervals; y, how often the truth lies in them. spread: y, spread/skill of each predicted frame.
    """
    figure = Figure(figsize=(10.4, 3.4))
    left = _axes(figure, "rank of the truth among the members", "density of ranks", place=(1, 3, 1))
    middle = _axes(figure, "level of the central interval", "truth inside", place=(1, 3, 2))
    right = _axes(figure, "frames ahead", "spread/skill", place=(1, 3, 3))
    ideal: Mapping[str, Any] = {"color": MUTED, "linewidth": 1, "linestyle": (0, (2, 3)), "label": "_"}
    left.axhline(1, **ideal)
    middle.plot([0, 1], [0, 1], **ideal)
    right.axhline(1, **ideal)
    for line in ranks:
        style = (0, (5, 3)) if line.dashed else "-"
        left.stairs(
            line.y, line.x, baseline=None, color=line.color, linestyle=style, linewidth=2.4 if line.bold else 1.6,
            label=line.label, zorder=4 if line.bold else 3,
        )  # fmt: skip
    for line in coverage:
        _draw(middle, line, marker="o")
    for line in spread:
        _draw(right, replace(line, x=[step + 1 for step in range(len(line.y))]), marker="o")
    left.set_xticks([0, 1], ["lowest", "highest"])
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    middle.set_xlim(0, 1)
    middle.set_ylim(0, 1)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, labelcolor=INK, fontsize=9.5, ncols=5, loc="lower right",
        bbox_to_anchor=(0.9, 0.97),
    )  # fmt: skip
    figure.subplots_adjust(wspace=0.25)
    return to_svg(figure)


@dataclass(frozen=True)
class Bar:
    """A bar with its label. quiet: draw it pale with a cross at its end, for a failed trial."""

    label: str
    value: float
    color: str = SERIES[0]
    quiet: bool = False


def bars(left: Sequence[Bar], right: Sequence[Bar]) -> str:
    """Bar charts of the importance of each search axis (left) and of the seconds of each trial (right)."""
    tallest = max(len(left), len(right), 3)
    figure = Figure(figsize=(10.4, 0.9 + 0.22 * tallest))
    for place, rows, name, unit in ((1, left, "importance", "share"), (2, right, "cost of each trial", "seconds")):
        axes = _axes(figure, unit, name, place=(1, 2, place))
        axes.grid(axis="y", visible=False)
        axes.barh(
            [row.label for row in rows],
            [row.value for row in rows],
            color=[GRID if row.quiet else row.color for row in rows],
            edgecolor=[row.color for row in rows],
        )
        for row in (row for row in rows if row.quiet):
            axes.plot([row.value], [row.label], "x", color=row.color, clip_on=False, **_CROSS)
        axes.invert_yaxis()
    figure.subplots_adjust(wspace=0.35)
    return to_svg(figure)


def _draw(axes: Axes, line: Line, marker: str | None) -> None:
    if line.failed:
        axes.plot(line.x[-1:], line.y[-1:], "x", color=line.color, label="_", **_CROSS)
    axes.plot(
        line.x,
        line.y,
        label=line.label or "_",
        color=line.color,
        alpha=line.strength,
        linestyle=(0, (5, 3)) if line.dashed else "-",
        linewidth=2.4 if line.bold else 1.6,
        marker=marker,
        markersize=4.5 if line.bold else 3.5,
        zorder=4 if line.bold else 3,
    )


def _finite(values: Sequence[float]) -> list[float]:
    return [v for v in values if np.isfinite(v)]


def _axes(figure: Figure, x: str, y: str, place: tuple[int, int, int] = (1, 1, 1)) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_facecolor("none")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)
    axes.tick_params(which="both", colors=MUTED, labelcolor=MUTED, length=3, left=False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, color=MUTED)
    axes.set_title(y, color=MUTED, loc="left", fontsize=10.5)
    return axes


def _legend(axes: Axes, unique: bool = False) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if unique:
        first = dict(zip(reversed(labels), reversed(handles), strict=True))
        labels = list(dict.fromkeys(labels))
        handles = [first[label] for label in labels]
    if labels:
        legend = axes.legend(
            handles,
            labels,
            frameon=False,
            labelcolor=INK,
            fontsize=9.5,
            ncols=min(len(labels), 5),
            loc="lower right",
            bbox_to_anchor=(1, 1),
            borderaxespad=0.2,
            columnspacing=1.4,
            handletextpad=0.5,
        )
        for handle in legend.legend_handles:
            if handle is not None:
                handle.set_alpha(1)


def to_svg(figure: Figure) -> str:
    """Convert a figure to an `<svg>` element without a fixed size, with text as text and CSS variables as colors."""
    figure.patch.set_alpha(0)
    buffer = StringIO()
    # Without a fixed salt, the ids of clip paths are random, and the page would differ between runs.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "raypipe"}):
        figure.savefig(
            buffer,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.05,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    return re.sub("#0101[0-9]{2}|#0102[0-9]{2}", lambda m: f"var(--{_VARIABLES[m[0]]})", svg)
