"""Tensor names in checkpoints of the reference code: assign them to networks and infer the networks' sizes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from raypipe import config
from raypipe.common.errors import UserError

COMPONENT = "vector_field_regressor."
"""Prefix of the tensors of a component's network."""
UNUSED = ("time_projection.", "loss.", "model_ema.")
"""Prefixes of tensors that the networks do not use for sampling; they are kept for export."""

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class ComponentSpec:
    """What `build_component` needs to build a component."""

    component: config.Component
    model: config.Model
    latent_channels: int


@dataclass(frozen=True)
class AutoencoderSpec:
    """What `build_network` needs to build the network of an autoencoder."""

    network: str
    arguments: dict[str, Any]


def routes(names: Iterable[str]) -> dict[str, str]:
    """Which networks a file contains: {prefix of the tensor names: "flow", "denoiser", "autoencoder" or ""}.

    "" stands for the main network, which in a file without components is an autoencoder. Files saved under DDP
    additionally prefix each name with `module.`.
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
    """The tensors whose names start with `prefix`, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def is_unused(name: str) -> bool:
    """Whether a tensor, named without its network's prefix, is one that sampling does not use."""
    return name.startswith(UNUSED)


def describe_component(
    state: State, component: config.Component | None, num_heads: int, latent_channels: int | None
) -> ComponentSpec:
    """Infer the configuration of a component from its tensors, named without prefix.

    component: None: denoiser if the network has equally many input and output channels, else flow.
    latent_channels: C; None: for a denoiser, inferred from the 4 input frames of the reference code; other components
    have C output channels. Raises UserError if the numbers of channels do not fit the component.
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
        raise UserError(f"{in_channels} input and {out_channels} output channels do not fit a {component}")
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
    """Infer type and configuration of an autoencoder (vqvae, vqgan or kl) from its tensors; None for other types.

    groups: number of groups of a kl autoencoder's group normalization, which cannot be inferred. Raises UserError if a
    tensor whose shape is needed is missing.
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
        raise UserError(f"lacks the tensor {name}, whose shape is needed to configure the network")
    return list(state[name].shape)


def _count(state: State, pattern: str) -> int:
    """Number of different values of the pattern's group at the start of the names."""
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})
