"""What ran: the config and the manifest (versions, commit, seeds, dataset) of an experiment."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from raypipe import config
from raypipe.common.files import write_atomic, write_json
from raypipe.config import Experiment
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder
from raypipe.workspace.layout import SPLITS, Workspace


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
