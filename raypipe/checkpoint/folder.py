"""Checkpoints: folders of `model.safetensors` and `config.json`, beside them what a training resumes from.

`python -m raypipe.checkpoint import` makes such a folder of a published file, `export` goes back
(`raypipe.checkpoint.reference`). Nothing here unpickles anything.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import nn

from raypipe import config
from raypipe.checkpoint.tensors import (
    check_fit,
    fill,
    first_line,
    read_tensors,
    read_tree,
    state_tensors,
    unwrap,
    write_tree,
)
from raypipe.common.errors import UserError
from raypipe.common.files import atomic_folder, standing
from raypipe.models.autoencoder import Autoencoder, build_network
from raypipe.models.components import build_component

CONFIG, MODEL, OPTIMIZER, UNUSED = "config.json", "model.safetensors", "optimizer.safetensors", "unused.safetensors"
LIVE = "live.safetensors"
"""The weights in training, where the model is their moving average."""
PARTS = ("flow", "denoiser", "autoencoder")
"""Folders inside the folder of an imported file that embeds other networks, unless one beside it holds them."""


@dataclass(frozen=True)
class Meta:
    """What `config.json` says of the weights beside it. None: not known, or does not apply."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    latent_channels: int
    component: config.Component | None = None
    model: config.Model | None = None
    network: str | None = None
    """An autoencoder's network: a name of `raypipe.models.autoencoder.NETWORKS`, and its arguments."""
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: config.Autoencoder | None = None
    """What an autoencoder was trained with."""
    step: int = 0
    seed: int | None = None
    noise_std: float | None = None
    loss: str | None = None
    flow: str | None = None
    """The flow that a diffusion was trained on, by name or by the path from this folder, and its `weights_hash`."""
    flow_hash: str | None = None
    residual_std: list[float] | None = None
    """A flow's residual standard deviation per channel at u = 0 on training data."""
    autoencoder_hash: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.component is None) != (self.model is None) or (self.component is None) == (self.network is None):
            raise UserError("either component and model must be given, or network")

    @property
    def kind(self) -> Literal["component", "autoencoder"]:
        return "autoencoder" if self.component is None else "component"

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, **config.to_dict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """Raises ValueError, naming the field, for anything that `to_json` did not write."""
        try:
            fields = json.loads(text)
            if isinstance(fields, dict):
                fields.pop("kind", None)  # told by the other fields
            return TypeAdapter(cls).validate_python(fields)
        except json.JSONDecodeError as error:
            raise UserError(f"not JSON ({error})") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def save_component(
    folder: str | Path,
    module: nn.Module,
    meta: Meta,
    optimizer: torch.optim.Optimizer | None = None,
    live: nn.Module | None = None,
) -> None:
    """Write a component (wrapped by DDP or torch.compile or not) and its optimizer's state, whole or not at all.

    live: the weights in training, where `module` is their average.
    A model folder that is there is replaced; ValueError if the folder holds anything else.
    """
    with staged(folder) as temporary:
        write_model(temporary, module, meta, optimizer)
        if live is not None and live is not module:
            save_file(state_tensors(live), temporary / LIVE)


def copy_component(source: str | Path, folder: str | Path, **changes: Any) -> None:
    """Put a copy of a saved component, with all that its training resumes from, in `folder`, whole or not at all.

    changes: fields of the copy's Meta. Raises ValueError as `load_component`, and if `folder` holds anything else.
    """
    meta = replace(_read_kind(source, "component"), **changes)
    with staged(folder) as temporary:
        for path in standing(Path(source)).iterdir():
            shutil.copy(path, temporary)
        (temporary / CONFIG).write_text(meta.to_json(), encoding="utf-8")


def load_component(folder: str | Path) -> nn.Module:
    """The flow, denoiser or diffusion of a folder, in eval mode, on the CPU.

    Raises ValueError if the folder holds no component, or if its files are missing, torn or do not fit.
    """
    meta = _read_kind(folder, "component")
    assert meta.component is not None and meta.model is not None
    with torch.device("meta"):  # draws no weights, so loading leaves the global generator alone
        module = build_component(meta.component, meta.model, meta.latent_channels)
    return fill(module, read_tensors(standing(Path(folder)) / MODEL), str(folder)).eval()


def load_optimizer(folder: str | Path, optimizer: torch.optim.Optimizer) -> None:
    """Put the saved state into an optimizer of the same parameters. ValueError if there is none or it differs."""
    path = standing(Path(folder)) / OPTIMIZER
    if not path.is_file():
        raise UserError(f"{folder}: no optimizer state ({OPTIMIZER}) to resume from; it was saved for inference only")
    try:
        optimizer.load_state_dict(read_tree(path))
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: does not fit this optimizer ({first_line(error)})") from None


def restore(
    folder: str | Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> int:
    """Put a saved training's weights, optimizer and moving average in place; its step.

    Raises ValueError if the folder is of another network, or holds no optimizer.
    """
    place = standing(Path(folder))
    meta = read_meta(folder)
    saved = read_tensors(place / MODEL)
    live = read_tensors(place / LIVE) if (place / LIVE).is_file() else saved
    for target, tensors in ((average, saved), (module, live)):
        if target is not None:
            check_fit(target, tensors, str(folder))
            target.load_state_dict(tensors)
    load_optimizer(folder, optimizer)
    return meta.step


def save_autoencoder(
    folder: str | Path,
    autoencoder: nn.Module,
    settings: config.Autoencoder | None = None,
    *,
    step: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """As `save_component`; the scale of the latents goes with the weights."""
    meta = autoencoder_meta(unwrap(autoencoder), settings=settings, step=step, extra=dict(extra or {}))
    with staged(folder) as temporary:
        write_model(temporary, autoencoder, meta, optimizer)


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """The autoencoder of a folder, in eval mode, on the CPU. Raises ValueError as `load_component`."""
    meta = _read_kind(folder, "autoencoder")
    assert meta.network is not None
    try:
        with torch.device("meta"):
            autoencoder = Autoencoder(build_network(meta.network, meta.arguments))
    except ValueError as error:
        raise UserError(f"{folder}: {CONFIG}: {error}") from None
    fill(autoencoder, read_tensors(standing(Path(folder)) / MODEL), str(folder))
    return autoencoder.eval()


def autoencoder_hash(folder: str | Path) -> str:
    """Identifies an autoencoder's weights and scale, and so the latents that it makes: sha256 in hex."""
    _read_kind(folder, "autoencoder")
    return weights_hash(folder)


def weights_hash(folder: str | Path) -> str:
    """The sha256 of `model.safetensors`, in hex."""
    read_meta(folder)
    with (standing(Path(folder)) / MODEL).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_meta(folder: str | Path) -> Meta:
    """What a folder holds. Raises ValueError if it is no model folder."""
    place = standing(Path(folder))
    for name in (CONFIG, MODEL):
        if not (place / name).is_file():
            raise UserError(
                f"{folder}: not a model folder (no {name}); "
                "give one that training or `python -m raypipe.checkpoint import` wrote"
            )
    try:
        return Meta.from_json((place / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place / CONFIG}: {error}") from None


def autoencoder_meta(autoencoder: nn.Module, **fields: Any) -> Meta:
    assert isinstance(autoencoder, Autoencoder)
    network, arguments = autoencoder.architecture
    return Meta(autoencoder.latent_channels, network=network, arguments=arguments, **fields)


def write_model(folder: Path, module: nn.Module, meta: Meta, optimizer: torch.optim.Optimizer | None = None) -> None:
    """The files of a checkpoint, into a folder that nobody reads yet (see `staged`)."""
    save_file(state_tensors(module), folder / MODEL)
    if optimizer is not None:
        write_tree(folder / OPTIMIZER, optimizer.state_dict())
    (folder / CONFIG).write_text(meta.to_json(), encoding="utf-8")


def staged(folder: str | Path) -> AbstractContextManager[Path]:
    """`files.atomic_folder` for a model folder. ValueError if the folder holds anything else."""
    target = Path(folder)
    known = {CONFIG, MODEL, LIVE, OPTIMIZER, UNUSED, *PARTS}
    foreign = sorted(path.name for path in target.iterdir() if path.name not in known) if target.is_dir() else []
    if foreign or (target.exists() and not target.is_dir()):
        found = f"it holds {foreign[0]!r}" if foreign else "it is a file"
        raise UserError(f"{folder}: cannot save a model here, {found}; choose a new or empty folder")
    return atomic_folder(target)


def _read_kind(folder: str | Path, kind: str) -> Meta:
    meta = read_meta(folder)
    if meta.kind != kind:
        raise UserError(f"{folder}: holds a model of kind {meta.kind}, not {kind}; load it with load_{meta.kind}")
    return meta
