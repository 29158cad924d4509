"""Autoencoders as stored by diffusers: folders of `config.json` and `diffusion_pytorch_model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypipe.checkpoint.pickles import read_pickle
from raypipe.common.errors import UserError, first_line
from raypipe.common.files import atomic_folder
from raypipe.models.kl import AutoencoderKL

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
READABLE = (WEIGHTS, "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin")
"""Names of the file of weights, the preferred one first."""
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL", "VQModel"),
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "norm_type": ("group",),
    "mid_block_add_attention": (True,),
}
"""Entries of `config.json` for which only these values are supported."""
BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
"""Lists in `config.json` whose items must be among these: without or with attention."""


@dataclass(frozen=True)
class DiffusersFolder:
    """Content of a diffusers folder. config: content of `config.json`. state: weights by their names in the file."""

    config: dict[str, Any]
    state: dict[str, Tensor]

    @property
    def groups(self) -> int:
        """Number of groups of the group normalization, which cannot be inferred from the weights."""
        return int(self.config.get("norm_num_groups", 32))


def read(folder: Path, weights: str | None = None) -> DiffusersFolder:
    """Read a folder. weights: name of the file of weights; None: the first of READABLE that exists.

    Raises UserError if a file is missing or damaged, or if the network is not an AutoencoderKL or VQModel that raypipe
    knows.
    """
    if not (folder / CONFIG).is_file() and (folder / "vae" / CONFIG).is_file():
        raise UserError(f"{folder}: is a whole diffusers pipeline; give its autoencoder, {folder / 'vae'}")
    weights = weights or next((name for name in READABLE if (folder / name).is_file()), None)
    missing = CONFIG if not (folder / CONFIG).is_file() else WEIGHTS if weights is None else None
    if missing is not None:
        raise UserError(f"{folder}: not a diffusers folder (no {missing}); give a folder with {CONFIG} and {WEIGHTS}")
    assert weights is not None
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        state = load_file(folder / weights) if weights.endswith(".safetensors") else _read_bin(folder / weights)
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be read ({first_line(error)}); download it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG}: must contain a JSON object, not a {type(config).__name__}")
    for name, allowed in ALLOWED.items():
        if config.get(name, allowed[0]) not in allowed:
            raise UserError(f"{folder / CONFIG}: {name}: must be {_either(allowed)}, not {config[name]!r}")
    for name, allowed in BLOCKS.items():
        unknown = next((block for block in config.get(name, ()) if block not in allowed), None)
        if unknown is not None:
            raise UserError(f"{folder / CONFIG}: {name}: must all be {_either(allowed)}, not {unknown!r}")
    return DiffusersFolder(config, state)


def _read_bin(file: Path) -> dict[str, Tensor]:
    content, _ = read_pickle(file)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"{file.name} is not a state dict")
    return content


def _either(allowed: tuple[Any, ...]) -> str:
    return " or ".join(map(repr, allowed))


def write(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write a folder atomically."""
    with atomic_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, temporary / WEIGHTS, {"format": "pt"})


def config_of(network: AutoencoderKL) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the same network. Raises UserError if diffusers cannot build it."""
    arguments = network.arguments
    levels, attention = len(arguments["widths"]), arguments["attention_levels"]
    if arguments["z_channels"] != arguments["channels"]:
        raise UserError("diffusers has no kl autoencoder whose z_channels differ from its latent channels")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "block_out_channels": arguments["widths"],
        "down_block_types": [BLOCKS["down_block_types"][level in attention] for level in range(levels)],
        "latent_channels": arguments["channels"],
        "layers_per_block": arguments["num_res_blocks"],
        "norm_num_groups": arguments["groups"],
        "up_block_types": [BLOCKS["up_block_types"][level in attention] for level in reversed(range(levels))],
    }
