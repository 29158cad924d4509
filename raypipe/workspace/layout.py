"""Paths of the files of an experiment."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from raypipe import config
from raypipe.common.places import is_uri
from raypipe.config import Component, ConfigError, Experiment
from raypipe.data.shards.cache import Cache
from raypipe.data.shards.storage import Folder, RemoteFolder


@dataclass(frozen=True)
class Workspace:
    """`<storage>/<name>/`, the folder of an experiment, and the paths in it."""

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
    def artifacts(self) -> Path:
        """Folder of the artifacts of the Optuna studies."""
        return self.folder / "artifacts"

    @property
    def trials(self) -> Path:
        return self.folder / "trials.parquet"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation"

    @property
    def ceiling(self) -> Path:
        """JSON file with what perfect latents score in pixels, see `raypipe.forecast.ceiling`."""
        return self.folder / "ceiling.json"

    @property
    def best(self) -> Path:
        return self.folder / "best"

    @property
    def ray(self) -> Path:
        """Folder for the files of Ray Train and Ray Tune."""
        return self.folder / "ray"

    def run(self, component: Component, name: str) -> Path:
        """Model folder of a run or trial."""
        return self.folder / component / name

    def finalists(self, component: Component) -> Path:
        """JSON file with the finalists of a finished stage."""
        return self.folder / component / "finalists.json"

    def importances(self, component: Component) -> Path:
        """JSON file with the importance of each search axis of a stage."""
        return self.folder / component / "importances.json"

    def latents(self, key: str) -> Path:
        """Folder of the latent cache. key: hash of the autoencoder."""
        return self.folder / "latents" / key[:16]

    def dataset(self, experiment: Experiment) -> Folder:
        """Folder of the dataset. The folder name of a built-in one contains a hash of its settings."""
        settings = experiment.dataset
        if settings.root is not None and is_uri(settings.root):
            cache = Cache(settings.cache, int(settings.cache_gb * 1e9))
            return RemoteFolder(settings.root, cache, stall=settings.stall_seconds)
        if settings.root is not None:
            return Path(settings.root).expanduser().resolve()
        return self.storage / "datasets" / f"{experiment.dataset.name}-{demo_key(experiment)}"

    def experiment(self) -> Experiment:
        """The config with which the experiment began. Raises ConfigError if there is none."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise ConfigError(f"{self.folder}: no experiment here (no config.yaml); run experiments/pipeline.py first")
        return config.load_stored(path)


def demo_key(experiment: Experiment) -> str:
    """Hash of the settings on which a built-in dataset depends."""
    text = json.dumps([config.to_dict(experiment.demo), experiment.dataset.image_size])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class ParentModels:
    """Folders of the trained models that a later stage uses: the flow, and for a diffusion also the denoiser."""

    flow: Path | None = None
    denoiser: Path | None = None
