"""Padding as TensorFlow's SAME, with which EfficientNet-Lite0 and I3D were trained."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad [n, C, *sizes] with zeros for ceil(size / stride) outputs a dimension, an odd one at the end."""
    pads: list[int] = []
    for size, width, step in zip(x.shape[2:], kernel, stride, strict=True):
        more = max((-(-size // step) - 1) * step + width - size, 0)
        pads = [more // 2, more - more // 2, *pads]  # functional.pad takes the last dimension first
    return functional.pad(x, pads)
