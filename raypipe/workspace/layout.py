"""The files of an experiment, and how they are written."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raypipe import config
from raypipe.config import Component, ConfigError, Experiment
from raypipe.data.shards.cache import Cache
from raypipe.data.shards.storage import Folder, RemoteFolder, is_uri

Split = Literal["train", "val", "test"]
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


@dataclass(frozen=True)
class ParentModels:
    """The trained models that a stage builds on: the flow, for a denoiser or a diffusion, and the denoiser."""

    flow: Path | None = None
    denoiser: Path | None = None
