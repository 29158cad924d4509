"""The files of an experiment, and how they are written."""

import hashlib
import itertools
import json
import os
import platform
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from raypipe import config
from raypipe.common.files import write_atomic, write_json
from raypipe.config import Component, ConfigError, Experiment
from raypipe.data.demo import make_demo
from raypipe.data.shards import is_shard, open_shards
from raypipe.data.shards.cache import Cache
from raypipe.data.shards.index import INDEX
from raypipe.data.shards.storage import Folder, RemoteFolder, is_uri, list_files

Split = Literal["train", "val", "test"]
LOCK = "search.lock"
"""Held by the command that runs a search; it says whose that is."""
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class Workspace:
    """`<storage>/<name>/`: every file of one experiment (the design's section 3)."""

    storage: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    @property
    def autoencoder(self) -> Path:
        return self.folder / "autoencoder"

    @property
    def study(self) -> Path:
        return self.folder / "study.log"

    @property
    def trials(self) -> Path:
        return self.folder / "trials.parquet"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def best(self) -> Path:
        return self.folder / "best"

    @property
    def ray(self) -> Path:
        """What Ray Train and Ray Tune write of their own."""
        return self.folder / "ray"

    def run(self, component: Component, name: str) -> Path:
        return self.folder / component / name

    def finalists(self, component: Component) -> Path:
        """What a finished stage handed on."""
        return self.folder / component / "finalists.json"

    def importances(self, component: Component) -> Path:
        """How much each axis of a stage's search mattered."""
        return self.folder / component / "importances.json"

    def latents(self, key: str) -> Path:
        return self.folder / "latents" / key[:16]

    def dataset(self, experiment: Experiment) -> Folder:
        """The folder of shards; the built-in dataset's name tells its settings apart."""
        settings = experiment.dataset
        if settings.root is not None and is_uri(settings.root):
            cache = Cache(settings.cache, int(settings.cache_gb * 1e9))
            return RemoteFolder(settings.root, cache, stall=settings.stall_seconds)
        if settings.root is not None:
            return Path(settings.root).expanduser().resolve()
        return self.storage / "datasets" / f"{experiment.dataset.name}-{demo_key(experiment)}"

    def experiment(self) -> Experiment:
        """The experiment as it was when it began."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise ConfigError(f"{self.folder}: no experiment here (no config.yaml); run experiments/pipeline.py first")
        return config.load(path)


def demo_key(experiment: Experiment) -> str:
    text = json.dumps([config.to_dict(experiment.demo), experiment.dataset.image_size])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def begin(workspace: Workspace, experiment: Experiment) -> None:
    """Record what runs: config.yaml and manifest.json, unless they stand already. The dataset must be there."""
    if not (workspace.folder / "config.yaml").exists():
        dataset = dataset_hashes(workspace.dataset(experiment))
        write_json(workspace.folder / "manifest.json", manifest(experiment, dataset=dataset))
        write_atomic(workspace.folder / "config.yaml", yaml.safe_dump(config.to_dict(experiment), sort_keys=False))


def dataset_hashes(root: Folder) -> dict[str, str]:
    """What identifies each split of a dataset."""
    return {split: open_shards(root / split).content_hash() for split in SPLITS}


def manifest(experiment: Experiment, **more: Any) -> dict[str, Any]:
    """Versions, commit and seeds: what it takes to run the same again."""
    packages = ("raypipe", "torch", "ray", "optuna", "h5py", "numpy", "pyarrow")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": git_commit(),
        "machine": {"processor": platform.machine(), "cpus": os.cpu_count()},
        "seeds": {
            "train": experiment.train.random_seed,
            "search": experiment.search.seed,
            "evaluation": experiment.evaluation.seed,
            "demo": experiment.demo.seed,
        },
    } | more


def git_commit() -> str | None:
    """The commit of the code that runs, with `+` if it was changed since; None outside a checkout."""
    where = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=where,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except OSError:
        return None
    return described.stdout.strip() or None if described.returncode == 0 else None


def claim(storage: Path, name: str) -> Workspace:
    """The first free one of `name`, `name-2`, `name-3`, ...; its folder is made, so that nobody else gets it."""
    for number in itertools.count(1):
        workspace = Workspace(storage, name if number == 1 else f"{name}-{number}")
        try:
            workspace.folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return workspace
    raise AssertionError


@contextmanager
def hold(workspace: Workspace) -> Iterator[None]:
    """Keep others from running this experiment at the same time; ConfigError if somebody does.

    The system lets go of the lock when its owner dies, however that happens. A folder in which nothing has
    begun is removed in the end.
    """
    workspace.folder.mkdir(parents=True, exist_ok=True)
    path = workspace.folder / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        owner = path.read_text().strip() if path.is_file() else ""
        raise ConfigError(
            f"{workspace.folder}: {owner or 'another process'} is running this search; "
            "wait for it to end, or begin another with a --name of its own"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        if not (workspace.folder / "config.yaml").exists() and os.listdir(workspace.folder) in ([], [LOCK]):
            path.unlink(missing_ok=True)
            workspace.folder.rmdir()
        lock.release()


def latest(storage: Path, has: Callable[[Workspace], bool], like: str | None = None) -> Workspace | None:
    """The experiment begun last for which `has` holds (of the name `like`, or `like-N`)."""
    begun = [path.parent for path in storage.glob("*/config.yaml")]
    named = [p for p in begun if like is None or p.name == like or p.name.startswith(f"{like}-")]
    found = [w for w in (Workspace(storage, p.name) for p in named) if has(w)]
    return max(found, key=lambda w: (w.folder / "config.yaml").stat().st_mtime_ns, default=None)


def check_dataset(workspace: Workspace, experiment: Experiment) -> None:
    """Raise ConfigError unless every split of the dataset has shards. Cheap: it only lists folders.

    The built-in dataset is made on first use, so there is nothing to check.
    """
    if not _is_built_in(experiment):
        _check_splits(workspace.dataset(experiment))


def prepare_dataset(workspace: Workspace, experiment: Experiment, progress: Callable[[int, int], None]) -> Folder:
    """The folder of shards. The built-in dataset is made on first use, under a lock; others must be there."""
    root = workspace.dataset(experiment)
    if _is_built_in(experiment):
        assert isinstance(root, Path)
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(root) + ".lock"):
            make_demo(root, experiment.demo, experiment.dataset.image_size, progress)
    _check_splits(root)
    return root


def _is_built_in(experiment: Experiment) -> bool:
    return experiment.dataset.root is None and experiment.dataset.name == "demo"


def _check_splits(root: Folder) -> None:
    for split in SPLITS:
        try:
            names = list_files(root / split)
        except ValueError as error:
            raise ConfigError(f"dataset.root: {error}") from None
        if INDEX not in names and not any(is_shard(name) for name in names):
            raise ConfigError(
                f"dataset.root: no shards in {str(root / split)!r}; make them with "
                f"python -m raypipe.convert_to_h5 --data_dir VIDEOS --out_dir {root}"
            )
