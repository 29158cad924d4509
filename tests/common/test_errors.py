"""Errors as lines of text."""

import pytest

from raypipe.common.errors import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("one\ntwo"), "one"),
        (ValueError(""), "ValueError"),
        (ValueError("\ntwo"), "ValueError"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_error_has_a_first_line_even_without_a_message(error, line):
    assert first_line(error) == line
