"""Tensor names in checkpoints: without the names of wrappers, and translated to one naming scheme.

Latent diffusion (CompVis) and diffusers name the same autoencoders differently: `encoder.down.0.block.0.conv1.weight`
and `encoder.down_blocks.0.resnets.0.conv1.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DDP, torch.compile, FSDP and activation checkpointing add."""
EMA = "model_ema."
"""Prefix of the averaged weights of latent diffusion, whose names lack their dots."""
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
"""CompVis -> diffusers, in an attention layer."""
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of the attention layers up to diffusers 0.14 -> current names. sd-vae-ft-mse has the old ones."""
COMPVIS = (
    (r"^encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.down\.(\d+)\.attn\.(\d+)\.", r"encoder.down_blocks.\1.attentions.\2."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"^decoder\.up\.(\d+)\.attn\.(\d+)\.", r"decoder.up_blocks.\1.attentions.\2."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"^(encoder|decoder)\.mid\.block_1\.", r"\1.mid_block.resnets.0."),
    (r"^(encoder|decoder)\.mid\.block_2\.", r"\1.mid_block.resnets.1."),
    (r"^(encoder|decoder)\.mid\.attn_1\.", r"\1.mid_block.attentions.0."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
)
"""Patterns of CompVis names -> diffusers names; the levels of the decoder are numbered the other way round besides."""


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each name -> the name without the parts that wrappers add, and with the dots of averaged weights restored.

    If two names would become equal, all stay as they are.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names}
    if len(set(plain.values())) < len(plain):
        plain = {name: name for name in plain}
    dotless = {name.replace(".", ""): name for name in plain.values()}
    for name, short in plain.items():
        outer, ema, weight = short.partition(EMA)
        original = dotless.get(f"{outer}{weight}".replace(".", "")) if ema and "." not in weight else None
        if original is not None:
            plain[name] = f"{outer}{EMA}{original.removeprefix(outer)}"
    return plain


def to_diffusers(name: str, levels: int) -> str:
    """The name of a tensor in current diffusers, given its name in CompVis's or any version of diffusers' scheme.

    levels: number of resolutions of the network.
    """
    if match := re.match(r"decoder\.up\.(\d+)\.", name):
        name = f"decoder.up.{levels - 1 - int(match[1])}.{name[match.end() :]}"
    for pattern, replacement in COMPVIS:
        name = re.sub(pattern, replacement, name)
    return re.sub(
        r"(\.attentions\.\d+)\.(\w+)\.(weight|bias)$",
        lambda match: f"{match[1]}.{(ATTENTION | OLD_ATTENTION).get(match[2], match[2])}.{match[3]}",
        name,
    )


def count_levels(names: Iterable[str]) -> int:
    """Number of resolutions of an autoencoder, given the names of its tensors in either scheme."""
    found = (re.match(r"encoder\.down(?:_blocks)?\.(\d+)\.", name) for name in names)
    return len({match[1] for match in found if match})
