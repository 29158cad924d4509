"""The command `raypipe VERB ...`: it finds the verb, imports nothing before, and hands its arguments over."""

import shlex
import subprocess
import sys
import tomllib
from importlib import import_module

import pytest

from raypipe.__main__ import VERBS, main
from tests.raytools import ROOT
from tests.recordedtools import unpack

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_script_of_the_project_is_this_command():
    module, _, name = PROJECT["scripts"]["raypipe"].partition(":")
    assert getattr(import_module(module), name) is main


def test_help_lists_the_verbs_within_half_a_second_and_loads_none(capsys):
    code = "import resource, sys; from raypipe.__main__ import main; main(); heavy = {'torch', 'ray', 'numpy'}; "
    code += "used = resource.getrusage(resource.RUSAGE_SELF); "
    code += "print(used.ru_utime + used.ru_stime, *(heavy & sys.modules.keys()), file=sys.stderr)"
    argv = [sys.executable, "-c", code, "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *modules = done.stderr.split()
    assert float(seconds) < 0.5 and modules == []
    assert [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")] == list(VERBS)
    assert main([]) == 0 and capsys.readouterr().out == done.stdout


def test_version_is_that_of_the_project(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"raypipe {PROJECT['version']}\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["trian"], "raypipe: error: unknown verb 'trian'; did you mean 'train'?\n"),
        (["--verison"], "raypipe: error: unknown verb '--verison'; did you mean '--version'?\n"),
        (["x"], f"raypipe: error: unknown verb 'x'; the verbs are {', '.join(VERBS)}\n"),
        (["convert", "--out_dir", "o"], "raypipe.convert_to_h5: error: the following arguments are required: "
         "--data_dir/--data-dir; see --help\n"),
        (["checkpoint", "export", "nowhere", "--out", "x.pth"], "raypipe.checkpoint: error: nowhere"),
        (["tune", "flow", "--trails", "3"], "raypipe.tune flow: error: unknown argument '--trails'; did you mean "
         "'--trials'?; see --help\n"),
        (["tune", "flwo"], "raypipe.tune: error: argument stage: invalid choice: 'flwo'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(capsys, argv, line):
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.startswith(line) and err.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help(verb, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([verb, "--help"])
    assert exit_.value.code == 0 and capsys.readouterr().out.startswith("usage: ")


COMPLETIONS = {
    "raypipe t": {"train", "tune"},
    "raypipe --": {"--help", "--version", "--print-completion"},
    "raypipe tune ": {"flow", "denoiser", "diffusion", "joint"},
    "raypipe tune flow --tria": {"--trials"},
    "raypipe train --run": {"--run-name"},
    "raypipe evaluate --dataset.na": {"--dataset.name"},
    "raypipe convert --fit ": {"crop", "pad"},
    "raypipe checkpoint p": {"push"},
    "raypipe checkpoint push --pri": {"--private"},
    "raypipe generate --model be": {"best"},
}
"""What a user has typed, and what the shell offers."""
TYPE = """
complete_now() {
    COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
    $(complete -p raypipe | sed 's/.*-F \\([^ ]*\\).*/\\1/')
    echo "${COMPREPLY[@]}"
}
"""


def test_bash_completes_verbs_and_flags(tmp_path, capsys):
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out + TYPE
    for typed in COMPLETIONS:
        words = [*typed.split(), *([""] if typed.endswith(" ") else [])]
        script += f"complete_now {' '.join(map(shlex.quote, words))}\n"
    (tmp_path / "best").mkdir()
    (tmp_path / "best.mp4").touch()
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    offered = dict(zip(COMPLETIONS, map(str.split, done.stdout.splitlines()), strict=True))
    assert {typed: set(words) for typed, words in offered.items()} == COMPLETIONS


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_get_a_script_too(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)


def test_a_completion_that_cannot_be_printed_is_one_line(monkeypatch, capsys):
    assert main(["--print-completion", "cmd"]) == 2
    assert capsys.readouterr().err.endswith("argument --print-completion: give one of bash, zsh, tcsh\n")
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "needs the package shtab" in err and "raypipe[completion]" in err


def test_a_verb_gets_its_arguments(tmp_path, capsys):
    workspace = unpack(tmp_path)
    assert main(["show", "demo", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{workspace.folder}: finished\n")
