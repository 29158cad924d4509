"""The smallest flow, denoiser and diffusion that show what they do, and what to show them."""

import pytest
import torch
from torch import Tensor, nn

from raypipe.config import COMPONENTS, Model
from raypipe.models.components import build_component

CHANNELS, HEIGHT, WIDTH, BATCH = 3, 4, 6, 2
ALL = pytest.mark.parametrize("component", COMPONENTS)


def small(**values: object) -> Model:
    return Model(**{"num_input_frames": 2, "inner_dim": 16, "num_heads": 2, **values})  # type: ignore[arg-type]


def build(component: str, **values: object) -> nn.Module:
    torch.manual_seed(0)
    return build_component(component, small(**values), CHANNELS)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 2 * CHANNELS, HEIGHT, WIDTH, generator=generator), torch.tensor([0.0, 0.7])
