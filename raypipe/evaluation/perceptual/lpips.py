"""LPIPS 0.1 (Zhang et al. 2018) with AlexNet, with the names of the state dict of `lpips.LPIPS(net="alex")`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS = (
    (0, 3, 64, 11, 4, 2),
    (3, 64, 192, 5, 1, 2),
    (6, 192, 384, 3, 1, 1),
    (8, 384, 256, 3, 1, 1),
    (10, 256, 256, 3, 1, 1),
)
"""Number among AlexNet's layers, channels, output channels, kernel size, stride and padding of its convolutions."""
POOLED = (0, 3)
"""Convolutions that are followed by a pooling."""


class Lpips(nn.Module):
    """The distance of frames, [n], from two batches [n, 3, H, W] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _Scaling()
        self.net = nn.Module()
        for index, (number, channels, out, kernel, stride, padding) in enumerate(LAYERS):
            slice_ = nn.Module()
            slice_.add_module(str(number), nn.Conv2d(channels, out, kernel, stride, padding))
            self.net.add_module(f"slice{index + 1}", slice_)
            self.add_module(f"lin{index}", _Weights(out))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for index, (first, second) in enumerate(zip(self._features(x), self._features(y), strict=True)):
            gap = (_unit(first) - _unit(second)).square()
            total = total + self.get_submodule(f"lin{index}.model.1")(gap).mean((1, 2, 3))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        x, found = self.scaling_layer(x), []
        for index, (number, *_) in enumerate(LAYERS):
            x = functional.relu(self.net.get_submodule(f"slice{index + 1}.{number}")(x))
            found.append(x)
            if number in POOLED:
                x = functional.max_pool2d(x, 3, 2)
        return found


class _Scaling(nn.Module):
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class _Weights(nn.Module):
    """The fitted weights of a layer's channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(channels, 1, 1, bias=False))


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
