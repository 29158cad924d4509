"""Sections of a config: the dataset and its latents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from raypipe.config.fields import Section, option, require, require_least

SIMULATED = ("demo", "smmnist")
"""Names of the built-in datasets, see `raypipe.data.simulated`."""


@dataclass(frozen=True)
class Dataset(Section):
    """The dataset of videos, and how frames are taken from them."""

    name: str = option("demo", "name of the dataset; `demo` and `smmnist` are simulated on first use")
    root: str | None = option(
        None,
        "folder or URI (s3://, gs://, ...) with shards in train/, val/ and test/; null: the simulated one",
    )
    cache: str = option(
        "~/.cache/raypipe", "folder on each node for local copies of shards, used if dataset.root is a URI"
    )
    cache_gb: float = option(
        50.0, "largest size of dataset.cache in GB; the least recently used shards are deleted first"
    )
    stall_seconds: float = option(60.0, "a download from dataset.root fails after this many seconds without data")
    image_size: int = option(64, "height and width of the frames in pixels, a multiple of 8 and at least 16")
    frame_stride: int = option(1, "k: use every k-th frame of the shards; one frame interval is then k of them")
    num_frames: int = option(
        12, "given plus predicted frames: an upper limit on model.num_input_frames + evaluation.horizon"
    )
    horizontal_flip: bool = option(
        False,
        "also train components on the mirror image of each clip, left to right, which is encoded once too; with "
        "latents.mode off, half of the clips are flipped in every step",
    )
    time_reversal: bool = option(
        False,
        "also train components on each clip played backwards; only for scenes in which that looks as real; needs "
        "latents.mode cache",
    )
    color_jitter: bool = option(False, "randomly change the colors of training clips; needs latents.mode off")

    def __post_init__(self) -> None:
        require(
            bool(re.fullmatch(r"[\w.-]+", self.name)),
            "dataset.name",
            "made of letters, digits, '.', '_' and '-'",
            self.name,
        )
        size = self.image_size
        require(size >= 16 and size % 8 == 0, "dataset.image_size", "a multiple of 8, at least 16", size)
        require(self.cache_gb > 0, "dataset.cache_gb", "above 0", self.cache_gb)
        require(self.stall_seconds > 0, "dataset.stall_seconds", "above 0", self.stall_seconds)
        require(self.frame_stride >= 1, "dataset.frame_stride", "at least 1", self.frame_stride)

    @property
    def simulated(self) -> bool:
        """Whether the dataset is one of the built-in ones."""
        return self.root is None and self.name in SIMULATED

    @property
    def is_demo(self) -> bool:
        """Whether the dataset is the built-in demo, whose bodies can be found by their color."""
        return self.simulated and self.name == "demo"


@dataclass(frozen=True)
class Demo(Section):
    """How many clips of the built-in dataset, `demo` or `smmnist`, are simulated."""

    train_clips: int = option(400, "clips in the training split")
    val_clips: int = option(64, "clips in the validation split")
    test_clips: int = option(128, "clips in the test split")
    clip_frames: int = option(24, "frames per clip")
    kick_probability: float = option(
        0.03, "probability per body and frame that its velocity suddenly changes (demo only)"
    )
    seed: int = option(0, "seed of the simulation")

    def __post_init__(self) -> None:
        require_least(1, self, "demo", "train_clips", "val_clips", "test_clips", "clip_frames")
        require(0 <= self.kick_probability <= 1, "demo.kick_probability", "from 0 to 1", self.kick_probability)


@dataclass(frozen=True)
class Latents(Section):
    """Whether frames are encoded once, before training, or in every training step."""

    mode: Literal["cache", "off"] = option(
        "cache", "cache: encode every frame once and store its latent; off: encode frames during training"
    )

    @classmethod
    def from_yaml(cls, value: object) -> object:
        """Expand the short forms `latents: off` (which YAML reads as false) and `latents: cache`."""
        return {"mode": "off"} if value is False else {"mode": value} if isinstance(value, str) else value
