"""Convert model folders to checkpoint files: those of the reference code, or the format they were imported from."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from raypipe.checkpoint import diffusers_folder, reference_names, shared
from raypipe.checkpoint.folder import UNUSED, Meta, load_autoencoder, load_component, read_meta
from raypipe.checkpoint.source import DIFFUSERS, SAFETENSORS, put
from raypipe.checkpoint.tensors import read_tree
from raypipe.common.errors import UserError
from raypipe.common.files import atomic_path
from raypipe.models.kl import AutoencoderKL

log = logging.getLogger(__name__)

TIME_PROJECTION = {"0.weight": (256, 1), "0.bias": (256,), "2.weight": (None, 256), "2.bias": (None,)}
"""Shapes of the unused time projection of the reference network; None: inner_dim."""


def export_file(folder: str | Path, file: str | Path) -> None:
    """Convert a model folder to a checkpoint file.

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
    state = {
        name: tensors[ours].to(getattr(torch, dtype)).reshape(*shape or [tensors[ours].shape])
        for name, ours, dtype, *shape in names
    }
    wrapper = record["wrapper"]
    if wrapper == DIFFUSERS:
        diffusers_folder.write(file, record["rest"]["config"], state)
        return
    if wrapper == SAFETENSORS:
        with atomic_path(file) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary, {"format": "pt"})
        return
    content = put(record["rest"], (wrapper,) if isinstance(wrapper, str) else tuple(wrapper), state)
    if "global_step" in content:
        content["global_step"] = meta.step
    with atomic_path(file) as temporary:
        torch.save(content, temporary)


def _new_record(folder: Path, meta: Meta) -> dict[str, Any]:
    """The record that `import_file` stores in `unused.safetensors`, for a network that was trained by raypipe.

    wrapper: DIFFUSERS, SAFETENSORS, or the keys that lead to the state dict in the file (a string: one key). names:
    [name in the file, name here, dtype, shape in the file] of each tensor, in the order of the file (the shape may be
    missing if it is the same here; an empty list: all tensors, under their names here). routes:
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
    if meta.component == "joint" or meta.model.backbone != "transformer":
        found = "joint network" if meta.component == "joint" else f"{meta.model.backbone} backbone"
        raise UserError(
            f"{folder}: the reference code has no {found}; only flow, denoiser and diffusion with model.backbone: "
            "transformer can be exported"
        )
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
