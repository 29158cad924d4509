"""Convert checkpoint files of the reference code to model folders (import) and back (export)."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.checkpoint import diffusers_folder, reference_names, shared
from raypipe.checkpoint.diffusers_folder import DiffusersFolder
from raypipe.checkpoint.folder import (
    MODEL,
    UNUSED,
    Meta,
    autoencoder_meta,
    load_autoencoder,
    load_component,
    read_meta,
    staged,
    weights_hash,
    write_model,
)
from raypipe.checkpoint.tensors import fill, pack, read_tree, write_tree
from raypipe.common.errors import UserError
from raypipe.models.autoencoder import Autoencoder, build_network
from raypipe.models.components import build_component
from raypipe.models.kl import AutoencoderKL

log = logging.getLogger(__name__)

DIFFUSERS = "diffusers"
"""The wrapper (entry of a checkpoint file that holds the state dict) recorded for a diffusers folder."""
TIME_PROJECTION = {"0.weight": (256, 1), "0.bias": (256,), "2.weight": (None, 256), "2.bias": (None,)}
"""Shapes of the unused time projection of the reference network; None: inner_dim."""


@dataclass(frozen=True)
class _Part:
    """An imported network of a checkpoint file."""

    meta: Meta
    names: set[str]
    """Names, without prefix, of the tensors that the network uses."""
    hash: str
    """`weights_hash` of the network."""
    reference: str
    """Path of the network's folder, relative to the imported folder."""


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint. folder: of its main network. parts: Meta of each network in the file, by folder."""

    folder: Path
    parts: Mapping[Path, Meta]


def import_file(
    file: str | Path, out: str | Path, *, component: config.Component | None = None, num_heads: int = 8
) -> Imported:
    """Convert a checkpoint file of the reference code, or a diffusers folder of an autoencoder, to a model folder.

    A component's file also contains other networks: its autoencoder, and for a diffusion also the flow and denoiser.
    These are stored in subfolders of `out`, unless a folder next to `out` already contains them; `out` then refers to
    that folder.

    component: component in the file; None: diffusion if the file contains a flow, else inferred from the numbers of
    channels (see `describe_component`). num_heads: number of attention heads.
    Raises UserError if the file is missing, contains anything but tensors and plain values, or contains no known
    network, and if `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: already exists; choose another folder to import to")
    top, wrapper = _read(Path(file))
    original: dict[str, Tensor] = top.pop(wrapper)
    state = {diffusers_folder.modern(name): tensor for name, tensor in original.items()}
    routes = reference_names.routes(state)
    groups = DiffusersFolder(top.get("config", {}), state).groups
    with staged(out) as temporary:
        try:
            parts = _import_parts(state, routes, temporary, out, component, num_heads, groups, _step(top))
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        taken = {f"{prefix}{name}" for prefix, part in routes.items() if part in parts for name in parts[part].names}
        record = {
            "wrapper": wrapper,
            "names": [[name, diffusers_folder.modern(name), str(t.dtype)[6:]] for name, t in original.items()],
            "routes": {prefix: parts[part].reference for prefix, part in routes.items() if part in parts},
            "shared": {part.reference: part.hash for name, part in parts.items() if part.reference != name},
            "unused": {name: tensor for name, tensor in state.items() if name not in taken},
            "rest": _plain_entries(top),
        }
        write_tree(temporary / UNUSED, record)
    return Imported(out, {shared.at(out, part.reference): part.meta for part in reversed(parts.values())})


def _import_parts(
    state: dict[str, Tensor],
    routes: Mapping[str, str],
    folder: Path,
    out: Path,
    component: config.Component | None,
    num_heads: int,
    groups: int,
    step: int,
) -> dict[str, _Part]:
    """Write the model folder of each network in a file; referenced networks are written before those that use them.

    routes: see `reference_names.routes`. folder: temporary folder that becomes `out`. out: next to it, folders are
    searched for networks that need not be stored again. groups: see `DiffusersFolder.groups`. step: training steps of
    the main network.
    """
    prefixes = {part: prefix for prefix, part in routes.items()}
    parts: dict[str, _Part] = {}
    for part in ("autoencoder", "flow", "denoiser", ""):
        if part not in prefixes:
            continue
        tensors = reference_names.under(state, prefixes[part])
        used = {name: tensor for name, tensor in tensors.items() if not reference_names.is_unused(name)}
        if prefixes[part].endswith(reference_names.COMPONENT):
            embedded = cast(config.Component, part) if part else None
            kind = embedded or component or ("diffusion" if "flow" in parts else None)
            module, meta = _component(used, kind, num_heads, parts)
        elif reference_names.describe_autoencoder(used) is None and part:
            log.warning("the type of the autoencoder in the file is unknown; its tensors are only kept for export")
            continue
        else:
            module, meta = _autoencoder(used, groups)
        place = folder / part
        place.mkdir(exist_ok=True)
        meta = dataclasses.replace(meta, step=0 if part else step)
        write_model(place, module, meta)
        digest = weights_hash(place)
        same = shared.find(out, digest, meta) if part else None
        if same is not None:
            shutil.rmtree(place)
        reference = part if same is None else shared.refer(out, same)
        parts[part] = _Part(meta, set(used), digest, reference)
    return parts


def _component(
    tensors: dict[str, Tensor], component: config.Component | None, num_heads: int, parts: Mapping[str, _Part]
) -> tuple[nn.Module, Meta]:
    """Build a component with these weights, and its Meta. parts: the networks of the file that it refers to."""
    autoencoder, flow = parts.get("autoencoder"), parts.get("flow")
    channels = autoencoder.meta.latent_channels if autoencoder else None
    spec = reference_names.describe_component(tensors, component, num_heads, channels)
    with torch.device("meta"):
        module = build_component(spec.component, spec.model, spec.latent_channels)
    fill(cast(nn.Module, module.network), tensors, spec.component)
    meta = Meta(
        spec.latent_channels,
        spec.component,
        spec.model,
        flow=flow.reference if flow and spec.component == "diffusion" else None,
        flow_hash=flow.hash if flow and spec.component == "diffusion" else None,
        autoencoder_hash=autoencoder.hash if autoencoder else None,
    )
    return module, meta


def _autoencoder(tensors: dict[str, Tensor], groups: int) -> tuple[nn.Module, Meta]:
    """Build an autoencoder with these weights, and its Meta. Raises UserError if its type is unknown."""
    spec = reference_names.describe_autoencoder(tensors, groups)
    if spec is None:
        known = f"{reference_names.COMPONENT}*, vector_quantizer.*, quantize.* or encoder.down_blocks.*"
        raise UserError(f"contains no network that raypipe knows: no tensor is named {known}")
    with torch.device("meta"):
        network = build_network(spec.network, spec.arguments)
    module = Autoencoder(fill(network, tensors, spec.network))
    return module, autoencoder_meta(module)


def take_autoencoder(path: Path, folder: Path) -> None:
    """Create the model folder of a trained autoencoder.

    path: a model folder, which is copied, or a file or diffusers folder that `import_file` accepts. Raises UserError if
    it is anything else or does not contain an autoencoder.
    """
    if (path / MODEL).is_file():
        load_autoencoder(path)  # raises if it is not an autoencoder
        with staged(folder) as temporary:
            shutil.copytree(path, temporary, dirs_exist_ok=True)
        return
    with tempfile.TemporaryDirectory(dir=_parent(folder)) as scratch:
        top = import_file(path, Path(scratch) / "model").folder
        if read_meta(top).kind != "autoencoder":
            raise UserError(
                f"{path}: contains a component, not an autoencoder; give the checkpoint file of an autoencoder"
            )
        top.rename(folder)


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def export_file(folder: str | Path, file: str | Path) -> None:
    """Convert a model folder to a checkpoint file of the reference code.

    An imported model is exported with the tensors and in the format of the original file. A kl autoencoder that was
    not imported is exported as a diffusers folder. For a diffusers folder, `file` is the folder to create.

    Raises UserError if the reference code does not have the network, if a network to which the folder refers no longer
    exists, and if `file` exists.
    """
    file, folder = Path(file), Path(folder)
    if file.exists():
        raise UserError(f"{file}: already exists; choose another file to export to")
    meta = read_meta(folder)
    record = read_tree(folder / UNUSED) if (folder / UNUSED).is_file() else _new_record(folder, meta)
    tensors = dict(record["unused"])
    elsewhere: dict[str, str] = record.get("shared", {})
    for prefix, part in record["routes"].items():
        place = shared.follow(folder, part, elsewhere[part]) if part in elsewhere else folder / part
        for name, tensor in _network_tensors(place).items():
            tensors[f"{prefix}{name}"] = tensor
    names = record["names"] or [(name, name, str(tensor.dtype)[6:]) for name, tensor in tensors.items()]
    state = {name: tensors[ours].to(getattr(torch, dtype)) for name, ours, dtype in names}
    if record["wrapper"] == DIFFUSERS:
        diffusers_folder.write(file, record["rest"]["config"], state)
        return
    content = {record["wrapper"]: state, **record["rest"]}
    if "global_step" in content:
        content["global_step"] = meta.step
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _new_record(folder: Path, meta: Meta) -> dict[str, Any]:
    """The record that `import_file` stores in `unused.safetensors`, for a network that was trained by raypipe.

    wrapper: entry of the checkpoint file that holds the state dict, or DIFFUSERS. names: [name in the file, current
    name, dtype] of each tensor, in the order of the file (empty: all tensors, under their current names). routes:
    prefix of the tensor names -> folder of the network, relative to the model folder. shared: `weights_hash` of each
    network that is stored outside the model folder. unused: tensors that no network uses. rest: other entries.
    """
    if meta.kind == "autoencoder":
        if meta.network not in ("vqvae", "vqgan", "kl"):
            raise UserError(f"{folder}: a {meta.network} autoencoder cannot be exported; only vqvae, vqgan and kl can")
        autoencoder = load_autoencoder(folder)
        if not bool((autoencoder.scale == 1).all()):
            log.warning(
                "%s: the scale of the latents is not exported, as the file format has no place for it; components "
                "that were trained on the scaled latents do not work without it",
                folder,
            )
        if isinstance(autoencoder.network, AutoencoderKL):
            entries = {"config": diffusers_folder.config_of(autoencoder.network)}
            return {"wrapper": DIFFUSERS, "names": [], "routes": {"": ""}, "unused": {}, "rest": entries}
        wrapper, prefix = ("model", "module.") if meta.network == "vqvae" else ("state_dict", "")
        return {"wrapper": wrapper, "names": [], "routes": {prefix: ""}, "unused": {}, "rest": {}}
    assert meta.model is not None
    if meta.model.time_input and meta.component != "denoiser":
        raise UserError(
            f"{folder}: the reference network has no time input; export a model trained with model.time_input: false"
        )
    unused = {
        f"{reference_names.COMPONENT}time_projection.{name}": torch.zeros(
            [size or meta.model.inner_dim for size in shape]
        )
        for name, shape in TIME_PROJECTION.items()
    }
    rest = {"optimizer": {}, "lr_scheduler": {}, "global_step": meta.step}
    return {"wrapper": "model", "names": [], "routes": {reference_names.COMPONENT: ""}, "unused": unused, "rest": rest}


def _network_tensors(folder: Path) -> dict[str, Tensor]:
    """Tensors of a model by their names in the reference code, without the scale of an autoencoder."""
    meta = read_meta(folder)
    load = load_component if meta.kind == "component" else load_autoencoder
    return reference_names.under(load(folder).state_dict(), "network.")


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """Content of a checkpoint file or diffusers folder, and the name of the entry that holds the state dict."""
    if file.is_dir():
        found = diffusers_folder.read(file)
        return {DIFFUSERS: found.state, "config": found.config}, DIFFUSERS
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a checkpoint of the reference code (.pth, .ckpt)")
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about odd pickles; the error below suffices
            top = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many exception types for invalid files
        log.debug("torch.load", exc_info=error)
        raise UserError(
            f"{file}: not loaded, as it is damaged or contains more than tensors and plain values "
            f"({type(error).__name__}); save only its state dict"
        ) from None
    for wrapper in ("model", "state_dict"):
        state = top.get(wrapper) if isinstance(top, dict) else None
        if isinstance(state, dict) and state and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return top, wrapper
    raise UserError(
        f"{file}: not a checkpoint of the reference code: it has no state dict under 'model' or 'state_dict'"
    )


def _step(top: Mapping[str, Any]) -> int:
    """Training steps of a checkpoint; 0 if it does not contain their number."""
    step = top.get("global_step", 0)
    return step if isinstance(step, int) and not isinstance(step, bool) else 0


def _plain_entries(top: Mapping[str, Any]) -> dict[str, Any]:
    """The entries besides the state dict (optimizer, lr_scheduler, ...) that can be stored without pickle."""
    kept = {}
    for name, value in top.items():
        try:
            pack(value, {})
        except ValueError as error:
            log.warning("the entry %r is not imported: %s", name, error)
        else:
            kept[name] = value
    return kept
