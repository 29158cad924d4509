"""The structure of the package: its layers, held by import-linter, and the sizes of its parts."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raypipe"
FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {"convert_to_h5", "train", "tune", "evaluate", "generate", "show"}


def lint(folder):
    environ = os.environ | {"PYTHONPATH": str(folder)}
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=folder, env=environ, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, folder / "raypipe", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(copy):
    code, out = lint(copy)
    assert code == 0, out


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("sde/path.py", "from raypipe.config import Experiment", "raypipe.sde is not allowed to import raypipe.config"),
        ("sde/path.py", "import raypipe.metrics.frames", "raypipe.sde is not allowed to import raypipe.metrics"),
        ("search/trial.py", "from raypipe import train", "raypipe.search is not allowed to import raypipe.train"),
        ("train.py", "from raypipe import tune", "raypipe.train is not allowed to import raypipe.tune"),
        ("training/loop.py", "import ray", "raypipe.training is not allowed to import ray"),
        ("models/conv.py", "from optuna import samplers", "raypipe.models is not allowed to import optuna"),
    ],
)
def test_a_forbidden_import_breaks_a_contract(copy, file, line, broken):
    path = copy / "raypipe" / file
    before = path.read_text()
    path.write_text(f"{before}\n{line}\n")
    try:
        code, out = lint(copy)
    finally:
        path.write_text(before)
    assert code == 1
    assert broken in out


def test_a_new_module_at_the_root_must_find_its_layer(copy):
    path = copy / "raypipe" / "newcomer.py"
    path.write_text("")
    try:
        code, out = lint(copy)
    finally:
        path.unlink()
    assert code != 0 and "newcomer" in out


def test_the_root_holds_commands_alone():
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMANDS | {"__init__", "__main__", "cli"}
    assert len(list(PACKAGE.glob("*/__init__.py"))) <= 14


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_files_and_functions_are_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}: use logging, or common.terminal.say in a command"
