"""Autoencoders as stored by diffusers: folders of `config.json` and `diffusion_pytorch_model.safetensors`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypipe.common.errors import UserError
from raypipe.common.files import atomic_folder
from raypipe.models.kl import AutoencoderKL

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
FIXED: Mapping[str, Any] = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "act_fn": "silu"}
"""Entries of `config.json` for which only one value is supported."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention layers up to diffusers 0.14 -> current names. sd-vae-ft-mse has the old ones."""


@dataclass(frozen=True)
class DiffusersFolder:
    """Content of a diffusers folder. config: content of `config.json`. state: weights by their names in the file."""

    config: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def groups(self) -> int:
        """Number of groups of the group normalization, which cannot be inferred from the weights."""
        return int(self.config.get("norm_num_groups", 32))


def read(folder: Path) -> DiffusersFolder:
    """Read a folder. Raises UserError if a file is missing or damaged, or if the network is not an AutoencoderKL."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: not a diffusers folder (no {name}); give a folder with {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be read ({str(error).splitlines()[0]}); download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG}: must contain a JSON object, not a {type(config).__name__}")
    blocks = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    for name, expected in FIXED.items():
        if config.get(name, expected) != expected:
            raise UserError(f"{folder / CONFIG}: {name}: must be {expected!r}, not {config[name]!r}")
    for name, expected in blocks.items():
        if not set(config.get(name, [expected])) <= {expected}:
            raise UserError(f"{folder / CONFIG}: {name}: must be all {expected!r}, not {config[name]!r}")
    return DiffusersFolder(config, state)


def write(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a folder atomically."""
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary / WEIGHTS, {"format": "pt"})


def config_of(network: AutoencoderKL) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same network."""
    levels, arguments = len(network.arguments["widths"]), network.arguments
    return {
        **FIXED,
        "block_out_channels": arguments["widths"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "latent_channels": arguments["channels"],
        "layers_per_block": arguments["num_res_blocks"],
        "norm_num_groups": arguments["groups"],
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def modern(name: str) -> str:
    """The current name of a tensor, given its name in any version of diffusers."""
    match = re.fullmatch(r"(.*\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)", name)
    return name if match is None else f"{match[1]}.{OLD_ATTENTION[match[2]]}.{match[3]}"
