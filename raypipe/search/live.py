"""Live progress of a search: a progress bar, and on a terminal a status line and a table of the running trials."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from raypipe.common.terminal import progress_bar, table

SHOWN = 12
"""Largest number of trials in the table, which must fit on the terminal."""


@dataclass(frozen=True)
class Running:
    """A running trial, at training step `step` of `steps`. objective: its score at its last rung, if any."""

    trial: str
    noise_std: float
    loss: str | None
    step: int
    steps: int
    objective: float | None


class Live:
    """Displays a progress bar with the number of ended trials and the time left, and a status text.

    The status text is appended to the bar; a terminal is too narrow for this and gets it on a second line. The table of
    running trials is shown on a terminal only, and is removed at the end.

    total: number of trials; done: number of trials that ended before the start.
    """

    def __init__(self, stage: str, total: int, done: int) -> None:
        self.terminal = sys.stderr.isatty()
        self._line = progress_bar(f"search {stage}", total, "trial", initial=done)
        self._status: tqdm[Any] | None = None
        self._table: list[tqdm[Any]] = []

    def ended(self) -> None:
        """Count one more ended trial."""
        self._line.update(1)

    def tell(self, text: str) -> None:
        """Show the status text."""
        if not self.terminal:
            self._line.set_postfix_str(text, refresh=False)
            return
        if self._status is None:
            self._status = tqdm(bar_format="{desc}", position=1, leave=True)
        self._status.set_description_str(self._fitted(text))

    def show(self, running: Sequence[Running]) -> None:
        """Redraw the table of running trials; does nothing if standard error is not a terminal."""
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
        """The text cut to the width of the terminal, since tqdm cannot redraw a wrapped line."""
        return text[: self._line.format_dict["ncols"]]

    def close(self) -> None:
        for line in reversed(self._table):
            line.close()
        self._line.close()
        if self._status is not None:
            self._status.close()
