"""The backbones among which `model.backbone` chooses.

A backbone is a module (x [b, in_channels, h, w], u [b] or None) -> [b, out_channels, h, w] for latents of any size. To
add one, write its module and name it here and in `raypipe.config.sections.Backbone`;
tests/models/test_conformance.py checks it.
"""

from collections.abc import Callable, Mapping

from torch import nn

from raypipe import config
from raypipe.models.convnet import ConvNet
from raypipe.models.transformer import Transformer


def build_backbone(model: config.Model, in_channels: int, out_channels: int, time_input: bool) -> nn.Module:
    """The backbone that `model.backbone` names. time_input: whether it sees u."""
    return _BACKBONES[model.backbone](model, in_channels, out_channels, time_input)


def _transformer(model: config.Model, in_channels: int, out_channels: int, time_input: bool) -> nn.Module:
    return Transformer(
        in_channels=in_channels,
        out_channels=out_channels,
        inner_dim=model.inner_dim,
        depth=model.depth,
        mid_depth=model.mid_depth,
        num_heads=model.num_heads,
        out_norm=model.out_norm,
        dropout=model.dropout,
        time_input=time_input,
    )


def _conv(model: config.Model, in_channels: int, out_channels: int, time_input: bool) -> nn.Module:
    return ConvNet(
        in_channels=in_channels,
        out_channels=out_channels,
        inner_dim=model.inner_dim,
        depth=model.depth,
        mid_depth=model.mid_depth,
        dropout=model.dropout,
        time_input=time_input,
    )


_BACKBONES: Mapping[config.Backbone, Callable[[config.Model, int, int, bool], nn.Module]] = {
    "transformer": _transformer,
    "conv": _conv,
}
