"""What a search shows while it runs: one line, and on a terminal a table of the trials below it."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from raypipe.cli import progress_bar, table

SHOWN = 12
"""Trials in the table; a terminal has a bottom."""


@dataclass(frozen=True)
class Running:
    """A trial under way: the step that it has reached of `steps`, and its objective at its last rung."""

    trial: str
    noise_std: float
    loss: str | None
    step: int
    steps: int
    objective: float | None


class Live:
    """The line says trials done and left, time left, the best so far, and how many failed."""

    def __init__(self, stage: str, total: int, done: int) -> None:
        self._line = progress_bar(f"search {stage}", total, "trial", initial=done)
        self._table: list[tqdm[Any]] = []
        self.terminal = sys.stderr.isatty()

    def ended(self) -> None:
        self._line.update(1)

    def tell(self, text: str) -> None:
        """Set the end of the line."""
        self._line.set_postfix_str(text, refresh=self.terminal)

    def show(self, running: Sequence[Running]) -> None:
        """Draw the table anew; without a terminal there is none."""
        if not self.terminal:
            return
        rows = [[r.trial, r.noise_std, r.loss or "-", f"{r.step}/{r.steps}", r.objective] for r in running[:SHOWN]]
        lines = table(rows, ["trial", "noise", "loss", "step", "objective"]).splitlines() if rows else []
        while len(self._table) < len(lines):
            self._table.append(tqdm(bar_format="{desc}", position=len(self._table) + 1, leave=False))
        for line, text in itertools.zip_longest(self._table, lines, fillvalue=""):
            assert isinstance(line, tqdm)
            line.set_description_str(text)

    def close(self) -> None:
        for line in reversed(self._table):
            line.close()
        self._line.close()
