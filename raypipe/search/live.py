"""What a search shows while it runs: one line, and on a terminal a second one and a table of the trials below it."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from raypipe.common.terminal import progress_bar, table

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
    """The line says trials done and left, and time left; then come the best so far, and how many failed.

    On a terminal, which is narrow, those have a line of their own, which stays as the first one does.
    """

    def __init__(self, stage: str, total: int, done: int) -> None:
        self.terminal = sys.stderr.isatty()
        self._line = progress_bar(f"search {stage}", total, "trial", initial=done)
        self._told: tqdm[Any] | None = None
        self._table: list[tqdm[Any]] = []

    def ended(self) -> None:
        self._line.update(1)

    def tell(self, text: str) -> None:
        if not self.terminal:
            self._line.set_postfix_str(text, refresh=False)
            return
        if self._told is None:
            self._told = tqdm(bar_format="{desc}", position=1, leave=True)
        self._told.set_description_str(self._fitted(text))

    def show(self, running: Sequence[Running]) -> None:
        """Draw the table anew; without a terminal there is none."""
        if not self.terminal:
            return
        rows = [[r.trial, r.noise_std, r.loss or "-", f"{r.step}/{r.steps}", r.objective] for r in running[:SHOWN]]
        lines = table(rows, ["trial", "noise", "loss", "step", "objective"]).splitlines() if rows else []
        while len(self._table) < len(lines):
            self._table.append(tqdm(bar_format="{desc}", position=len(self._table) + 2, leave=False))
        for line, text in itertools.zip_longest(self._table, lines, fillvalue=""):
            assert isinstance(line, tqdm)
            line.set_description_str(self._fitted(text))

    def _fitted(self, text: str) -> str:
        """As much of the text as the terminal is wide: a line that wraps could not be drawn again."""
        return text[: self._line.format_dict["ncols"]]

    def close(self) -> None:
        for line in reversed(self._table):
            line.close()
        self._line.close()
        if self._told is not None:
            self._told.close()
