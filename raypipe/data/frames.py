"""Convert stored frames (uint8, channels last) to network frames (float32 in [-1, 1], channels first) and back."""

from __future__ import annotations

import torch
from torch import Tensor


def to_float(frames: Tensor) -> Tensor:
    """Convert uint8 [..., H, W, 3] to float32 [..., 3, H, W]; 0 maps to -1 and 255 to 1."""
    if frames.dtype != torch.uint8 or frames.shape[-1] != 3:
        raise ValueError(f"frames: must be uint8 [..., H, W, 3], not {frames.dtype} {list(frames.shape)}")
    return frames.movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_uint8(frames: Tensor) -> Tensor:
    """Convert floats [..., 3, H, W] in [-1, 1] to uint8 [..., H, W, 3], rounded and clamped; inverse of `to_float`."""
    if not frames.is_floating_point() or frames.ndim < 3 or frames.shape[-3] != 3:
        raise ValueError(f"frames: must be floating point [..., 3, H, W], not {frames.dtype} {list(frames.shape)}")
    levels = frames.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return levels.to(torch.uint8).movedim(-3, -1).contiguous()
