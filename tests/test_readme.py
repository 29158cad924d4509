"""The README is short, and its tree and links are true; tests/test_readme_commands.py runs its commands."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) < 200


def expansion(target):
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "--dry-run", "--always-make", target]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=outer)
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_make_demo_is_the_pipeline():
    assert expansion("demo").rstrip().endswith("/bin/python experiments/pipeline.py")


def test_make_test_is_what_ci_runs():
    steps = expansion("test")
    for step in ("ruff check", "ruff format --check", "mypy", "-m pytest"):
        assert step in steps
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_tree_names_every_package_and_command():
    tree = README[README.index("## The tree") :]
    listed = re.findall(r"^  (\w+)/", tree, re.MULTILINE)
    packages = [path.parent.name for path in sorted((ROOT / "raypipe").glob("*/__init__.py"))]
    assert sorted(listed) == packages
    commands = re.findall(r"\b(\w+\.py)\b", tree.splitlines()[3])
    assert sorted(commands) == sorted(path.name for path in (ROOT / "raypipe").glob("[!_]*.py"))


def test_what_it_links_to_is_there():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).is_file(), target
