"""Published checkpoint files to model folders and back: `python -m raypipe.checkpoint import|export`."""

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
"""Stands for the file's wrapper where the weights came in a folder of diffusers'."""
TIME_PROJECTION = {"0.weight": (256, 1), "0.bias": (256,), "2.weight": (None, 256), "2.bias": (None,)}
"""Shapes of the published network's unused tensors, None being inner_dim."""


@dataclass(frozen=True)
class _Part:
    """A network of the file: what it is, which tensors it took, its weights' hash, and the way to its folder."""

    meta: Meta
    names: set[str]
    hash: str
    reference: str


@dataclass(frozen=True)
class Imported:
    """What a published file held, by folder: the file's own network and those that it embeds."""

    folder: Path
    parts: Mapping[Path, Meta]


def import_file(
    file: str | Path, out: str | Path, *, component: config.Component | None = None, num_heads: int = 8
) -> Imported:
    """Make the model folder `out` of a published component (its flow, denoiser and autoencoder inside) or autoencoder.

    A folder of diffusers' (sd-vae-ft-mse) is an autoencoder too.
    An embedded network that a folder beside `out` holds already is not stored again: the new folder refers to it.
    `component` tells what the file holds where its sizes do not; a file that embeds a flow is a diffusion's.
    Raises ValueError if the file is missing, holds more than tensors and plain values, or no known network.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out}: is there already; choose another folder to import to")
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
    """Write every network that a file holds, those first that others refer to.

    folder: what will be `out`, beside which embedded networks may stand already.
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
            log.warning("the embedded autoencoder is none that raypipe knows; its tensors are kept for export only")
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
    spec = reference_names.describe_autoencoder(tensors, groups)
    if spec is None:
        known = f"{reference_names.COMPONENT}*, vector_quantizer.*, quantize.*, encoder.down_blocks.*"
        raise UserError(f"no network that raypipe knows: none of {known}")
    with torch.device("meta"):
        network = build_network(spec.network, spec.arguments)
    module = Autoencoder(fill(network, tensors, spec.network))
    return module, autoencoder_meta(module)


def take_autoencoder(path: Path, folder: Path) -> None:
    """Make the model folder of a trained autoencoder: a copy of another one, or of a published file.

    Raises ValueError if `path` is neither.
    """
    if (path / MODEL).is_file():
        load_autoencoder(path)  # refuses what is none
        with staged(folder) as temporary:
            shutil.copytree(path, temporary, dirs_exist_ok=True)
        return
    with tempfile.TemporaryDirectory(dir=_parent(folder)) as scratch:
        top = import_file(path, Path(scratch) / "model").folder
        if read_meta(top).kind != "autoencoder":
            raise UserError(f"{path}: holds a component, not an autoencoder; give the autoencoder's own file")
        top.rename(folder)


def _parent(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder.parent


def export_file(folder: str | Path, file: str | Path) -> None:
    """Write a model folder as the published code reads it; an imported one comes back tensor for tensor.

    An imported folder of diffusers' comes back as one: `file` is then the folder to make.

    Raises ValueError for networks that the published code does not have, if one that the folder refers to is gone, and
    if `file` exists.
    """
    file, folder = Path(file), Path(folder)
    if file.exists():
        raise UserError(f"{file}: is there already; choose another file to export to")
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
    """How a network of our own stands in a published file."""
    if meta.kind == "autoencoder":
        if meta.network not in ("vqvae", "vqgan", "kl"):
            raise UserError(f"{folder}: a {meta.network} autoencoder has no published form; export a vqvae or vqgan")
        autoencoder = load_autoencoder(folder)
        if not bool((autoencoder.scale == 1).all()):
            log.warning(
                "%s: the latents' scale has no place in a published file; components trained on it need it", folder
            )
        if isinstance(autoencoder.network, AutoencoderKL):
            entries = {"config": diffusers_folder.config_of(autoencoder.network)}
            return {"wrapper": DIFFUSERS, "names": [], "routes": {"": ""}, "unused": {}, "rest": entries}
        wrapper, prefix = ("model", "module.") if meta.network == "vqvae" else ("state_dict", "")
        return {"wrapper": wrapper, "names": [], "routes": {prefix: ""}, "unused": {}, "rest": {}}
    assert meta.model is not None
    if meta.model.time_input and meta.component != "denoiser":
        raise UserError(f"{folder}: the published network has no time input; export one trained with time_input: false")
    unused = {
        f"{reference_names.COMPONENT}time_projection.{name}": torch.zeros(
            [size or meta.model.inner_dim for size in shape]
        )
        for name, shape in TIME_PROJECTION.items()
    }
    rest = {"optimizer": {}, "lr_scheduler": {}, "global_step": meta.step}
    return {"wrapper": "model", "names": [], "routes": {reference_names.COMPONENT: ""}, "unused": unused, "rest": rest}


def _network_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of `network`, whose names are the published ones; an autoencoder's scale is ours alone."""
    meta = read_meta(folder)
    load = load_component if meta.kind == "component" else load_autoencoder
    return reference_names.under(load(folder).state_dict(), "network.")


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """A published file's content (or a folder's of diffusers'), and the entry that holds the state dict."""
    if file.is_dir():
        found = diffusers_folder.read(file)
        return {DIFFUSERS: found.state, "config": found.config}, DIFFUSERS
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a checkpoint of the published code (.pth, .ckpt)")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which are about to be refused in one line
            top = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types on bad bytes; whatever it is, the file is refused
        log.debug("torch.load", exc_info=error)
        raise UserError(
            f"{file}: not a checkpoint of tensors and plain values alone ({type(error).__name__}), so it is not read; "
            "save its state dict by itself"
        ) from None
    for wrapper in ("model", "state_dict"):
        state = top.get(wrapper) if isinstance(top, dict) else None
        if isinstance(state, dict) and state and all(isinstance(tensor, Tensor) for tensor in state.values()):
            return top, wrapper
    raise UserError(f"{file}: not a published checkpoint: it has no state dict under 'model' or 'state_dict'")


def _step(top: Mapping[str, Any]) -> int:
    step = top.get("global_step", 0)
    return step if isinstance(step, int) and not isinstance(step, bool) else 0


def _plain_entries(top: Mapping[str, Any]) -> dict[str, Any]:
    """The entries (optimizer, lr_scheduler, ...) that can be kept without pickle."""
    kept = {}
    for name, value in top.items():
        try:
            pack(value, {})
        except ValueError as error:
            log.warning("%s: left out, %s", name, error)
        else:
            kept[name] = value
    return kept
