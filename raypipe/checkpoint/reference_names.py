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
COMPONENT_TENSOR = re.compile(
    r"((?:.*\.)?)(?:project_in\.1\.weight|project_out\.4\.weight|position_encoding\.col_embed\.weight)"
)
AUTOENCODER_TENSOR = re.compile(
    r"((?:.*\.)?)(?:(?:encoder|decoder)\.conv_in\.weight|(?:vector_quantizer|quantize)\.embedding\.weight)"
)
"""Names of tensors that every component and every autoencoder has, after a prefix."""
COMPONENT_LAYERS = ("project_in", "position_encoding", "in_blocks", "mid_blocks", "out_blocks", "project_out")
AUTOENCODER_LAYERS = ("encoder", "decoder", "quant_conv", "post_quant_conv", "vector_quantizer")
"""Layers of the networks. Tensors outside them (losses, counters) are not needed for sampling."""
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


@dataclass(frozen=True)
class Networks:
    """The networks of a file that belong together.

    routes: {prefix of the tensor names: "flow", "denoiser", "autoencoder" or ""}; "" stands for the main network.
    components: the prefixes of components; the others are those of autoencoders.
    """

    routes: dict[str, str]
    components: frozenset[str]

    @property
    def prefix(self) -> str:
        """Prefix of the main network's tensors."""
        return next(prefix for prefix, part in self.routes.items() if not part)


def find_networks(names: Iterable[str]) -> list[Networks]:
    """The networks in a state dict, one item per main network, such as weights and their moving average.

    A main network is a component, with the networks that its file embeds, or an autoencoder if there is no component.
    names: without the parts that wrappers add (`naming.plain_names`).
    """
    names = list(names)
    components, autoencoders = _prefixes(COMPONENT_TENSOR, names), _prefixes(AUTOENCODER_TENSOR, names)
    if not components:
        return [Networks({prefix: ""}, frozenset()) for prefix in autoencoders]
    outer = {prefix: prefix.removesuffix(COMPONENT) for prefix in components}
    mains = [prefix for prefix in components if outer[prefix].split(".")[-2:-1] not in (["f"], ["d"])]
    found = []
    for main in mains or components:
        routes = {main: ""}
        for part, letter in (("flow", "f"), ("denoiser", "d")):
            embedded = f"{outer[main]}{letter}.{COMPONENT}"
            if embedded in components and embedded != main:
                routes[embedded] = part
        inside = [prefix for prefix in autoencoders if prefix.startswith(outer[main])]
        for prefix in sorted(inside, key=is_average)[:1]:
            routes[prefix] = "autoencoder"
        found.append(Networks(routes, frozenset(routes) & frozenset(components)))
    return found


def is_average(label: str) -> bool:
    """Whether a prefix or the name of an entry says that it holds a moving average of weights."""
    return re.search(r"(^|[._])(ema|swa|averaged?)([._]|$)", label) is not None


def _prefixes(pattern: re.Pattern[str], names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(match[1] for name in names if (match := pattern.fullmatch(name))))


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, by their names without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def used_by_component(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors of a component, by their names without `prefix`.

    Under the prefix of the reference code, all but those that it is known not to use; else those of its layers.
    """
    tensors = under(state, prefix)
    if prefix.endswith(COMPONENT):
        return {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    return {name: tensor for name, tensor in tensors.items() if name.split(".")[0] in COMPONENT_LAYERS}


def used_by_autoencoder(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors of an autoencoder, by their names without `prefix`: those of its layers, and the codes."""
    return {
        name: tensor
        for name, tensor in under(state, prefix).items()
        if name.split(".")[0] in AUTOENCODER_LAYERS or name == "quantize.embedding.weight"
    }


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


def describe_autoencoder(state: State, groups: int = 32) -> AutoencoderSpec:
    """Infer type and configuration of an autoencoder (vqvae, vqgan or kl) from its tensors.

    state: by their names without prefix; those of a vqgan or kl are named as in diffusers (`naming.to_diffusers`).
    groups: number of groups of the group normalization, which cannot be inferred. Raises UserError if a tensor whose
    shape is needed is missing, or if `groups` does not fit.
    """
    if "vector_quantizer.embedding.weight" in state:
        codes, channels = _shape(state, "vector_quantizer.embedding.weight")
        return AutoencoderSpec("vqvae", {"num_embeddings": codes, "channels": channels})
    first = _shape(state, "encoder.conv_in.weight")[0]
    levels = range(_count(state, r"encoder\.down_blocks\.(\d+)\."))
    widths = [_shape(state, f"encoder.down_blocks.{i}.resnets.0.conv1.weight")[0] for i in levels]
    bad = next((width for width in widths if width % groups), None)
    if bad is not None:
        raise UserError(
            f"a layer of {bad} channels does not have {groups} groups; import the diffusers folder, whose config.json "
            "states norm_num_groups"
        )
    common = {
        "num_res_blocks": _count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "attention_levels": [i for i in levels if f"encoder.down_blocks.{i}.attentions.0.to_q.weight" in state],
    }
    if "quantize.embedding.weight" not in state:
        channels, z_channels = _shape(state, "post_quant_conv.weight")[1], _shape(state, "decoder.conv_in.weight")[1]
        kl = {"channels": channels, "z_channels": z_channels, "widths": widths, "groups": groups}
        return AutoencoderSpec("kl", kl | common)
    if groups != 32:
        raise UserError(f"norm_num_groups: must be 32 for a VQ autoencoder, not {groups}")
    codes, channels = _shape(state, "quantize.embedding.weight")
    vqgan = {
        "num_embeddings": codes,
        "channels": channels,
        "z_channels": _shape(state, "encoder.conv_out.weight")[0],
        "ch": first,
        "ch_mult": [width // first for width in widths],
    }
    return AutoencoderSpec("vqgan", vqgan | common)


def _shape(state: State, name: str) -> list[int]:
    if name not in state or state[name].ndim < 2:
        raise UserError(f"lacks the tensor {name}, whose shape is needed to configure the network")
    return list(state[name].shape)


def _count(state: State, pattern: str) -> int:
    """Number of different values of the pattern's group at the start of the names."""
    return len({match.group(1) for name in state if (match := re.match(pattern, name))})
