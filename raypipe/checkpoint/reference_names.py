"""The published checkpoints' names: which tensors are which network, and the sizes that they tell."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raypipe import config
from raypipe.common.errors import UserError

COMPONENT = "vector_field_regressor."
UNUSED = ("time_projection.", "loss.", "model_ema.")
"""Tensors that stand beside a network's own and that sampling never uses: kept, so that export gives them back."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ComponentSpec:
    component: config.Component
    model: config.Model
    latent_channels: int


@dataclass(frozen=True)
class AutoencoderSpec:
    network: str
    arguments: dict[str, Any]


def routes(names: Iterable[str]) -> dict[str, str]:
    """Which prefix of the names holds which network: {prefix: "" (the file's own), "flow", "denoiser", "autoencoder"}.

    Every name of a file written under DDP begins with `module.`; without components a file is an autoencoder's.
    """
    names = list(names)
    ddp = "module." if names and all(name.startswith("module.") for name in names) else ""
    candidates = {
        f"{ddp}{COMPONENT}": "",
        f"{ddp}f.{COMPONENT}": "flow",
        f"{ddp}d.{COMPONENT}": "denoiser",
        f"{ddp}ae.backbone.": "autoencoder",
    }
    found = {prefix: part for prefix, part in candidates.items() if any(name.startswith(prefix) for name in names)}
    if f"{ddp}{COMPONENT}" not in found:
        return {ddp: ""}
    if "autoencoder" not in found.values() and any(name.startswith(f"{ddp}ae.") for name in names):
        found[f"{ddp}ae."] = "autoencoder"
    return found


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def is_unused(name: str) -> bool:
    return name.startswith(UNUSED)


def describe_component(
    state: State, component: config.Component | None, num_heads: int, latent_channels: int | None
) -> ComponentSpec:
    """The component with these tensors (names without prefix).

    `component` None: a denoiser if it returns as many channels as it takes, else a flow.
    `latent_channels` None, for a denoiser: those of 4 input frames, as published.
    Raises ValueError if the sizes do not fit together.
    """
    inner_dim, in_channels = _shape(state, "project_in.1.weight")
    out_channels = _shape(state, "project_out.4.weight")[0]
    component = component or ("denoiser" if in_channels == out_channels else "flow")
    if component == "denoiser":
        channels = latent_channels or in_channels // config.Model().num_input_frames
        expected = in_channels
    else:
        channels = expected = out_channels
    if out_channels != expected or channels < 1 or in_channels % channels:
        raise UserError(f"{in_channels} channels in and {out_channels} out do not fit a {component}")
    model = config.Model(
        num_input_frames=in_channels // channels,
        inner_dim=inner_dim,
        depth=_count(state, r"in_blocks\.(\d+)\."),
        mid_depth=_count(state, r"mid_blocks\.(\d+)\."),
        num_heads=num_heads,
        out_norm="bn" if "project_out.3.weight" in state else "ln",
        dropout=0.05,
        time_input=False,
    )
    return ComponentSpec(component, model, channels)


def describe_autoencoder(state: State, groups: int = 32) -> AutoencoderSpec | None:
    """The published VQ-VAE or a VQGAN, by its codebook's name, or a KL autoencoder; None for anything else.

    groups: a KL autoencoder's, which no tensor tells.

    Raises ValueError if a tensor that tells a size is missing.
    """
    if "vector_quantizer.embedding.weight" in state:
        codes, channels = _shape(state, "vector_quantizer.embedding.weight")
        return AutoencoderSpec("vqvae", {"num_embeddings": codes, "channels": channels})
    if "encoder.down_blocks.0.resnets.0.conv1.weight" in state:
        return AutoencoderSpec("kl", _kl_arguments(state, groups))
    if "quantize.embedding.weight" not in state:
        return None
    codes, channels = _shape(state, "quantize.embedding.weight")
    levels = range(_count(state, r"encoder\.down\.(\d+)\."))
    ch = _shape(state, "encoder.conv_in.weight")[0]
    arguments = {
        "num_embeddings": codes,
        "channels": channels,
        "z_channels": _shape(state, "encoder.conv_out.weight")[0],
        "ch": ch,
        "ch_mult": [_shape(state, f"encoder.down.{i}.block.0.conv1.weight")[0] // ch for i in levels],
        "num_res_blocks": _count(state, r"encoder\.down\.0\.block\.(\d+)\."),
        "attention_levels": [i for i in levels if f"encoder.down.{i}.attn.0.q.weight" in state],
    }
    return AutoencoderSpec("vqgan", arguments)


def _kl_arguments(state: State, groups: int) -> dict[str, Any]:
    levels = range(_count(state, r"encoder\.down_blocks\.(\d+)\."))
    return {
        "channels": _shape(state, "post_quant_conv.weight")[0],
        "widths": [_shape(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels],
        "num_res_blocks": _count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "groups": groups,
    }


def _shape(state: State, name: str) -> list[int]:
    if name not in state or state[name].ndim < 2:
        raise UserError(f"lacks the tensor {name}, which tells a size of the network")
    return list(state[name].shape)


def _count(state: State, pattern: str) -> int:
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})
