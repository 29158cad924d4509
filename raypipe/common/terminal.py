"""Terminal output of commands: progress bars, lines of text and tables."""

import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm


def progress_bar(name: str, total: int | None, unit: str, **more: Any) -> "tqdm[Any]":
    """A tqdm progress bar. If stderr is not a terminal, it is printed at most every ten seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=name, unit=unit, mininterval=interval, dynamic_ncols=True, **more)


def say(text: str = "") -> None:
    """Print a line to stdout and flush."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Format rows as a text table: text columns left-aligned, numeric columns right-aligned."""
    cells = [[cell(value) for value in row] for row in rows]
    numeric = [
        all(isinstance(row[i], int | float) or row[i] is None for row in rows) and bool(rows)
        for i in range(len(header))
    ]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]

    def line(values: Sequence[str]) -> str:
        padded = [v.rjust(w) if right else v.ljust(w) for v, w, right in zip(values, widths, numeric, strict=True)]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *map(line, cells)])


def cell(value: object) -> str:
    """Format a value of a table; a missing one is shown as a dash."""
    if value is None or (isinstance(value, float) and value != value):
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.2e}"
    return str(value)
