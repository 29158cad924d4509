"""The record of an experiment: its config, and a manifest of versions, commit, machine, seeds and dataset."""

import platform
import subprocess
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from raypipe import config
from raypipe.common.cpus import cpu_count
from raypipe.common.files import write_atomic, write_json
from raypipe.config import Experiment
from raypipe.data.shards import open_shards
from raypipe.data.shards.storage import Folder
from raypipe.workspace.dataset import dataset_preprocessing, splits_of
from raypipe.workspace.layout import Workspace


def begin(workspace: Workspace, experiment: Experiment) -> None:
    """Write config.yaml and manifest.json of a new experiment; existing ones are kept. The dataset must exist."""
    config_path, manifest_path = workspace.folder / "config.yaml", workspace.folder / "manifest.json"
    if not manifest_path.exists():
        root = workspace.dataset(experiment)
        made = dataset_preprocessing(root)
        record = manifest(experiment, dataset=dataset_hashes(root), preprocessing=made and asdict(made))
        # The config first: after a kill between both, --resume goes on with it.
        if not config_path.exists():
            write_atomic(config_path, yaml.safe_dump(config.to_dict(experiment), sort_keys=False))
        write_json(manifest_path, record)


def dataset_hashes(root: Folder) -> dict[str, str]:
    """Content hash of each split of a dataset."""
    return {split: open_shards(root / split).content_hash() for split in splits_of(root)}


def manifest(experiment: Experiment, **more: Any) -> dict[str, Any]:
    """Versions, commit, machine and seeds, which are needed to reproduce a run. more: further entries."""
    packages = ("raypipe", "torch", "ray", "optuna", "h5py", "numpy", "pyarrow")
    return {
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "commit": git_commit(),
        "machine": {"processor": platform.machine(), "cpus": cpu_count()},
        "seeds": {
            "train": experiment.train.random_seed,
            "search": experiment.search.seed,
            "evaluation": experiment.evaluation.seed,
            "demo": experiment.demo.seed,
        },
    } | more


def git_commit() -> str | None:
    """Git commit of the running code, followed by `+` if there are uncommitted changes; None outside a checkout."""
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
