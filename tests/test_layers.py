"""The layers of the design: imports point down only, and files stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raypipe"

VERBS = {"convert_to_h5", "train", "tune", "evaluate", "generate"}
# what the verbs share of Ray Train, Ray Tune and Optuna
RAY = {
    *("launch", "encoding", "search", "space", "study", "study_search", "trial", "trial_log", "refits", "warm_start"),
    *("schedulers", "rungs", "median", "cohort", "population", "cluster"),
}
MIDDLE = {
    *("report", "checkpoint", "published", "workspace", "sources", "fit", "task", "autoencoding", "stage"),
    *("averaging", "training", "diffusers_folder", "references"),
    *("forecast", "predictor", "film", "monitor", "records", "finalists", "combination", "plots"),
}
FOLDERS = {"data", "models", "sde", "metrics"}
BASE = {"rules", "config", "training_config", "published_config", "device", "cli", "files", "live"}
LAYERS = (BASE, FOLDERS, MIDDLE, VERBS | RAY)  # from the bottom up
CLUSTER = {"ray", "optuna"}
MAX_LINES = 500

FILES = sorted(path for path in PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def unit(path: Path) -> str:
    """What the rules speak of: a top-level module or folder; `__init__` for the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def level(name: str) -> int | None:
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


def imports(tree: ast.Module, path: Path) -> Iterator[str]:
    """Dotted names of all that a module imports, also inside functions and under TYPE_CHECKING."""
    package = ("raypipe", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) + 1 - node.level]] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def problems(path: Path, source: str) -> list[str]:
    """Every breach of the rules in one file, in words."""
    tree = ast.parse(source)
    mine = unit(path)
    found = []
    if mine != "__init__" and level(mine) is None:
        found.append(f"{mine} is in no layer: add it to VERBS, MIDDLE, FOLDERS or BASE in tests/test_layers.py")
    for name in imports(tree, path):
        top, *rest = name.split(".")
        if top in CLUSTER and mine not in VERBS | RAY:
            found.append(f"{mine} imports {name}: only the verbs and their launchers may import ray or optuna")
        if top != "raypipe" or not rest or mine == "__init__" or rest[0] == mine:
            continue
        theirs, own = level(rest[0]), level(mine)
        if theirs is None:
            found.append(f"{mine} imports raypipe.{rest[0]}, which is in no layer")
        elif own is not None and theirs > own:
            found.append(f"{mine} imports {name}, which lies above it")
        elif mine in FOLDERS and rest[0] in FOLDERS:
            found.append(f"{mine} imports {name}: the middle folders do not import each other")
        elif mine in FOLDERS and rest[0] == "cli":
            found.append(f"{mine} imports {name}: the command line is the verbs' own")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and mine != "cli":
            found.append(f"line {node.lineno} prints: use logging, or cli.say in a verb")
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        found.append(f"{lines} lines, more than {MAX_LINES}: one idea a file")
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_file(path):
    assert problems(path, path.read_text()) == []


def test_no_circles_among_the_modules_of_a_layer():
    """Of what is imported on loading; an import inside a function waits until both modules are there."""
    graph = {}
    for path in FILES:
        if unit(path) in MIDDLE | BASE | VERBS:
            tree = ast.parse(path.read_text())
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = (name.split(".") for name in imports(tree, path))
            graph[unit(path)] = {parts[1] for parts in names if parts[0] == "raypipe" and len(parts) > 1}
    free = set(graph)
    while leaves := {name for name in free if not graph[name] & (free - {name})}:
        free -= leaves
    assert free == set(), f"these modules import each other in a circle: {', '.join(sorted(free))}"


def test_the_folders_are_packaged():
    """A folder that setuptools does not list works here and is missing where it is installed."""
    text = (ROOT / "pyproject.toml").read_text()
    for path in sorted(PACKAGE.rglob("__init__.py")):
        name = ".".join(path.relative_to(ROOT).parts[:-1])
        assert f'"{name}"' in text, name


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        ("newcomer.py", "", "newcomer is in no layer: add it to"),
        ("sde/x.py", "from raypipe.models.backbone import Backbone", "do not import each other"),
        ("sde/x.py", "from raypipe import models", "do not import each other"),
        ("sde/x.py", "from ..models import backbone", "do not import each other"),
        ("data/x.py", "def f():\n    import raypipe.checkpoint", "lies above it"),
        ("data/x.py", "from raypipe.cli import say", "the command line is the verbs' own"),
        ("config.py", "from raypipe.sde import path", "lies above it"),
        ("fit.py", "from raypipe import train", "lies above it"),
        (
            "fit.py",
            "def f():\n    from ray import tune",
            "only the verbs and their launchers may import ray or optuna",
        ),
        (
            "models/x.py",
            "import optuna.samplers",
            "only the verbs and their launchers may import ray or optuna",
        ),
        ("train.py", "from raypipe.newcomer import x", "which is in no layer"),
        ("train.py", "print('hello')", "line 1 prints"),
        ("fit.py", "x = 1\n" * 501, "501 lines"),
    ],
)
def test_the_rules_bite(file, source, words):
    found = problems(PACKAGE / file, source)
    assert len(found) == 1, found
    assert words in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sde/x.py", "from raypipe.sde.path import draw\nfrom raypipe.config import Sde"),
        ("train.py", "import ray\nfrom raypipe import fit, cli\nfrom raypipe.sde import path"),
        ("checkpoint.py", "from raypipe.models.backbone import Backbone"),
        ("cli.py", "print('allowed here')"),
        ("data/x.py", "import rayon  # not ray"),
    ],
)
def test_what_is_allowed(file, source):
    assert problems(PACKAGE / file, source) == []
