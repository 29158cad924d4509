"""What a search shows on a terminal, and in a log file."""

import io
import sys

import pytest

from raypipe.live import Live, Running


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self._terminal = terminal

    def isatty(self):
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_the_line_counts_and_the_table_is_for_a_terminal(terminal, monkeypatch):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    live = Live("flow", 8, 2)
    live.tell("best 0.412 (flow-01: s 0.1 nll)")
    live.show([Running("flow-04", 0.2, "mse", 120, 600, None), Running("flow-05", 0.0, None, 200, 600, 0.52)])
    live.ended()
    live.show([Running("flow-05", 0.0, None, 300, 600, 0.52)])
    live.close()
    text = stream.getvalue()
    assert "search flow" in text and "2/8" in text and "best 0.412 (flow-01: s 0.1 nll)" in text
    shown = [word in text for word in ("flow-04", "mse", "120/600", "objective", "300/600", "0.520")]
    assert shown == [stream.isatty()] * len(shown)
    if not stream.isatty():
        assert "\x1b" not in text
