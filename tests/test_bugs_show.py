"""A defect of raypipe ends in a traceback and exit code 1; only what the user can mend is one line and exit code 2."""

import subprocess
import sys

import pytest

from raypipe import cli
from raypipe.common.errors import ConfigError, UserError


@pytest.mark.parametrize(
    ("command", "function", "defect"),
    [
        ("train", "make_parser", "list(zip([1], [1, 2], strict=True))"),
        ("evaluate", "make_parser", "min([])"),
        ("generate", "make_parser", "numpy.ones(2) + numpy.ones(3)"),
        ("convert_to_h5", "make_parser", "min([])"),
    ],
)
def test_a_defect_shows_its_traceback(command, function, defect):
    """The defect is compiled under the command's own name, so that its last frame lies in raypipe."""
    code = f"""
        import numpy
        from raypipe import cli, {command} as command
        command.numpy = numpy
        exec(compile("def broken(*args): {defect}", command.__file__, "exec"), command.__dict__)
        command.{function} = command.broken
        raise SystemExit(cli.run(command.main, "raypipe.{command}"))
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "in broken" in done.stderr
    assert "ValueError" in done.stderr.splitlines()[-1]


def test_a_user_error_is_one_line(capsys):
    def main(argv):
        raise UserError("video.mp4: not a readable\nvideo")

    assert cli.run(main, "verb") == 2
    assert capsys.readouterr().err == "verb: error: video.mp4: not a readable video\n"


def test_config_errors_are_user_errors():
    assert ConfigError is UserError and issubclass(UserError, ValueError)
