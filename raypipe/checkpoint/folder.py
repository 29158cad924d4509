"""Save and load model folders: `model.safetensors`, `config.json` and the state that a training needs to resume.

`raypipe.checkpoint.reference` converts checkpoints of other programs to such folders and back. Nothing in this
module uses pickle.
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
    read_tensors,
    read_tree,
    state_tensors,
    unwrap,
    write_tree,
)
from raypipe.common.errors import UserError, first_line
from raypipe.common.files import atomic_folder, sha256, standing
from raypipe.models.autoencoder import INPUT_RANGE, Autoencoder, build_network
from raypipe.models.components import build_component

CONFIG, MODEL, OPTIMIZER, UNUSED = "config.json", "model.safetensors", "optimizer.safetensors", "unused.safetensors"
LIVE = "live.safetensors"
"""The weights that the optimizer updates, if `model.safetensors` holds others."""
AVERAGE = "average.safetensors"
"""The moving average of those weights, if `model.safetensors` holds neither, but the best weights on validation."""
PARTS = ("flow", "denoiser", "autoencoder")
"""Subfolders of an imported model folder, for the other networks that the checkpoint file contained."""


@dataclass(frozen=True)
class Meta:
    """Content of `config.json`: describes the model and its training. None: unknown, or not applicable."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    latent_channels: int
    """Number of latent channels, C."""
    component: config.Component | None = None
    model: config.Model | None = None
    network: str | None = None
    """Network of an autoencoder: a name in `raypipe.models.autoencoder.NETWORKS`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments from which the network of an autoencoder is built."""
    input_range: tuple[float, float] | None = None
    """Range of the frames that the network of an autoencoder takes; None: [-1, 1], or not applicable."""
    settings: config.Autoencoder | None = None
    """Config with which an autoencoder was trained."""
    step: int = 0
    """Training steps done."""
    seed: int | None = None
    """Random seed of the training."""
    noise: config.Noise | None = None
    """How noise enters a joint network."""
    noise_std: float | None = None
    """s, the noise level in training."""
    loss: str | None = None
    """Name of the loss in training."""
    flow: str | None = None
    """The flow on which a diffusion was trained: its name, or its path relative to this folder."""
    flow_hash: str | None = None
    """`weights_hash` of that flow."""
    residual_std: list[float] | None = None
    """std [C] of `raypipe.sde`: root mean square of a flow's residual at u = 0 on training windows."""
    autoencoder_hash: str | None = None
    """`autoencoder_hash` of the autoencoder whose latents the component was trained on."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other JSON values."""

    def __post_init__(self) -> None:
        if (self.component is None) != (self.model is None) or (self.component is None) == (self.network is None):
            raise UserError("give either component and model, or network")

    @property
    def kind(self) -> Literal["component", "autoencoder"]:
        return "autoencoder" if self.component is None else "component"

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, **config.to_dict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Meta:
        """The inverse of `to_json`. Raises UserError, naming the field, for invalid text."""
        try:
            fields = json.loads(text)
            if isinstance(fields, dict):
                fields.pop("kind", None)  # derived from the other fields
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
    average: nn.Module | None = None,
) -> None:
    """Save a component, and the state of its optimizer if given, atomically.

    module: the component, possibly wrapped by DDP or torch.compile. live: the module that the optimizer updates, and
    average: its moving average, if `module` is another one. Replaces an existing model folder; raises UserError if the
    folder contains other files.
    """
    with staged(folder) as temporary:
        write_model(temporary, module, meta, optimizer)
        if live is not None and live is not module:
            save_file(state_tensors(live), temporary / LIVE)
        if average is not None and average is not module and average is not live:
            save_file(state_tensors(average), temporary / AVERAGE)


def copy_component(source: str | Path, folder: str | Path, **changes: Any) -> None:
    """Copy a saved component, with the state that its training needs to resume, to `folder`, atomically.

    changes: new values of fields of the copy's Meta. Raises UserError if `source` is not a component, or if `folder`
    contains files that are not part of a model folder.
    """
    meta = replace(_read_kind(source, "component"), **changes)
    with staged(folder) as temporary:
        for path in standing(Path(source)).iterdir():
            shutil.copy(path, temporary)
        (temporary / CONFIG).write_text(meta.to_json(), encoding="utf-8")


def load_component(folder: str | Path) -> nn.Module:
    """Load a flow, denoiser, diffusion or joint network, in eval mode, on the CPU.

    Raises UserError if the folder contains no component, or if a file is missing, damaged or does not fit the network.
    """
    meta = _read_kind(folder, "component")
    assert meta.component is not None and meta.model is not None
    with torch.device("meta"):  # no weight initialization, which would change the state of the global generator
        module = build_component(meta.component, meta.model, meta.latent_channels, meta.noise or "additive")
    return fill(module, read_tensors(standing(Path(folder)) / MODEL), str(folder)).eval()


def load_optimizer(folder: str | Path, optimizer: torch.optim.Optimizer) -> None:
    """Load the saved state into an optimizer. Raises UserError if there is none, or if the parameters differ."""
    path = standing(Path(folder)) / OPTIMIZER
    if not path.is_file():
        raise UserError(
            f"{folder}: no optimizer state ({OPTIMIZER}) to resume from; the model was saved for inference only"
        )
    try:
        optimizer.load_state_dict(read_tree(path))
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: does not fit this optimizer ({first_line(error)})") from None


def restore(
    folder: str | Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None = None
) -> int:
    """Load the weights, optimizer state and moving average of a saved training; returns its number of steps.

    module: gets the weights that the optimizer updates. average: gets their moving average. Raises UserError if the
    folder contains another network or no optimizer state.
    """
    place = standing(Path(folder))
    meta = read_meta(folder)
    saved = read_tensors(place / MODEL)
    live = read_tensors(place / LIVE) if (place / LIVE).is_file() else saved
    mean = read_tensors(place / AVERAGE) if (place / AVERAGE).is_file() else saved
    for target, tensors in ((average, mean), (module, live)):
        if target is not None:
            check_fit(target, tensors, str(folder))
            target.load_state_dict(tensors)
    load_optimizer(folder, optimizer)
    return meta.step


def drop_training_state(folder: str | Path) -> None:
    """Delete what only further training needs: the state of the optimizer, the weights that it updates, their mean."""
    for name in (OPTIMIZER, LIVE, AVERAGE):
        (standing(Path(folder)) / name).unlink(missing_ok=True)


def drop_weights(folder: str | Path) -> None:
    """Delete all tensors of a model folder; its `config.json` stays."""
    drop_training_state(folder)
    (standing(Path(folder)) / MODEL).unlink(missing_ok=True)


def save_autoencoder(
    folder: str | Path,
    autoencoder: nn.Module,
    settings: config.Autoencoder | None = None,
    *,
    step: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save an autoencoder like `save_component`. Its weights include the scale of the latents."""
    meta = autoencoder_meta(unwrap(autoencoder), settings=settings, step=step, extra=dict(extra or {}))
    with staged(folder) as temporary:
        write_model(temporary, autoencoder, meta, optimizer)


def load_autoencoder(folder: str | Path) -> Autoencoder:
    """Load an autoencoder, in eval mode, on the CPU. Raises UserError in the same cases as `load_component`."""
    meta = _read_kind(folder, "autoencoder")
    assert meta.network is not None
    try:
        with torch.device("meta"):
            autoencoder = Autoencoder(build_network(meta.network, meta.arguments), meta.input_range or INPUT_RANGE)
    except ValueError as error:
        raise UserError(f"{folder}: {CONFIG}: {error}") from None
    fill(autoencoder, read_tensors(standing(Path(folder)) / MODEL), str(folder))
    return autoencoder.eval()


def autoencoder_hash(folder: str | Path) -> str:
    """SHA-256 (hex) of an autoencoder's weights, scale and input range, which identifies the latents it computes."""
    meta = _read_kind(folder, "autoencoder")
    digest = weights_hash(folder)
    if meta.input_range is None:
        return digest
    return hashlib.sha256(f"{digest} {meta.input_range}".encode()).hexdigest()


def weights_hash(folder: str | Path) -> str:
    """SHA-256 (hex) of `model.safetensors`."""
    read_meta(folder)
    return sha256(standing(Path(folder)) / MODEL)


def read_meta(folder: str | Path) -> Meta:
    """The content of `config.json`. Raises UserError if the folder is not a model folder."""
    place = standing(Path(folder))
    for name in (CONFIG, MODEL):
        if not (place / name).is_file():
            raise UserError(
                f"{folder}: not a model folder (no {name}); "
                "give one that training or `python -m raypipe.checkpoint import` wrote"
                + ("" if name == CONFIG else ", or a trial whose weights were kept (search.keep)")
            )
    try:
        return Meta.from_json((place / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{place / CONFIG}: {error}") from None


def autoencoder_meta(autoencoder: nn.Module, **fields: Any) -> Meta:
    """The Meta of an autoencoder. fields: further fields of it."""
    assert isinstance(autoencoder, Autoencoder)
    network, arguments = autoencoder.architecture
    input_range = None if autoencoder.input_range == INPUT_RANGE else autoencoder.input_range
    return Meta(autoencoder.latent_channels, network=network, arguments=arguments, input_range=input_range, **fields)


def write_model(folder: Path, module: nn.Module, meta: Meta, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Write the files of a model into a folder, which is not atomic: use it inside `staged`."""
    save_file(state_tensors(module), folder / MODEL)
    if optimizer is not None:
        write_tree(folder / OPTIMIZER, optimizer.state_dict())
    (folder / CONFIG).write_text(meta.to_json(), encoding="utf-8")


def staged(folder: str | Path) -> AbstractContextManager[Path]:
    """`files.atomic_folder` for a model folder. Raises UserError if the folder contains other files."""
    target = Path(folder)
    known = {CONFIG, MODEL, LIVE, AVERAGE, OPTIMIZER, UNUSED, *PARTS}
    foreign = sorted(path.name for path in target.iterdir() if path.name not in known) if target.is_dir() else []
    if foreign or (target.exists() and not target.is_dir()):
        found = f"it contains {foreign[0]!r}" if foreign else "it is a file"
        raise UserError(f"{folder}: cannot save a model here because {found}; choose a new or empty folder")
    return atomic_folder(target)


def _read_kind(folder: str | Path, kind: str) -> Meta:
    """`read_meta`, which also raises UserError if the model is not of this kind, component or autoencoder."""
    meta = read_meta(folder)
    if meta.kind != kind:
        raise UserError(f"{folder}: contains a model of kind {meta.kind}, not {kind}; load it with load_{meta.kind}")
    return meta
