"""The backbones among which `model.backbone` chooses.

A backbone is a module (x [b, in_channels, h, w], u [b] or None) -> [b, out_channels, h, w] for latents of any size. To
add one, write its module and name it here and in `raypipe.config.sections.Backbone`;
tests/models/test_conformance.py checks it.
"""

from torch import nn

from raypipe import config
from raypipe.models.convnet import ConvNet
from raypipe.models.transformer import Transformer


def build_backbone(model: config.Model, in_channels: int, out_channels: int, time_input: bool) -> nn.Module:
    """The backbone that `model.backbone` names. time_input: whether it sees u."""
    sizes = (in_channels, out_channels, model.inner_dim, model.depth, model.mid_depth)
    match model.backbone:
        case "conv":
            return ConvNet(*sizes, dropout=model.dropout, time_input=time_input)
        case "transformer":
            return Transformer(
                *sizes, model.num_heads, out_norm=model.out_norm, dropout=model.dropout, time_input=time_input
            )
