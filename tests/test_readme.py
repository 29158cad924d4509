"""The README is true: short, and each of its commands is run by a test."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

RUN_BY = {
    "make demo": "test_readme.py::test_make_demo_is_the_pipeline",
    "make test": "test_readme.py::test_make_test_is_what_ci_runs",
    "python experiments/pipeline.py": "test_pipeline.py",
    "python experiments/tune_flow.py": "search/test_tuner.py",
    "python -m raypipe.train": "test_train.py",
    "python -m raypipe.evaluate": "test_pipeline.py",
    "python -m raypipe.generate": "test_pipeline.py",
    "python -m raypipe.convert_to_h5": "test_convert.py",
    "python -m raypipe.checkpoint import": "checkpoint/test_reference.py",
    "python -m raypipe.checkpoint export": "checkpoint/test_reference.py",
    "export RAY_AUTH_MODE=token": "test_jobs.py::RAY_AUTH_MODE",
    "ray start --head": "test_jobs.py",
    "ray job submit --working-dir . -- python -m raypipe.evaluate": "test_jobs.py",
    "ray up cluster.yaml": "test_cluster.py",
}
"""Every command of the README, by its beginning, and the test that runs it (`ray up` needs an AWS account: its file
is validated the way Ray does it)."""

COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]


def test_it_is_short():
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_run_by_a_test(command):
    beginning = max((known for known in RUN_BY if command.startswith(known)), key=len, default=None)
    assert beginning is not None, f"no test is named for {command!r}"
    file, _, name = RUN_BY[beginning].partition("::")
    text = (ROOT / "tests" / file).read_text()
    wanted = name or beginning.removesuffix(".py").split()[-1].split(".")[-1].split("/")[-1]
    assert wanted in text


def test_no_command_is_listed_in_vain():
    assert all(any(command.startswith(known) for command in COMMANDS) for known in RUN_BY)


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
