"""The smallest networks of each kind that show what they do, and what to show them."""

import pytest
import torch
from torch import Tensor, nn

from raypipe.config import RIVALS, Model
from raypipe.models.components import build_component

CHANNELS, HEIGHT, WIDTH, BATCH = 3, 4, 6, 2
KINDS = [
    f"{network}@{backbone}"
    for network in ("flow", "denoiser", "diffusion", "joint:additive", "joint:input")
    for backbone in ("transformer", "conv")
]
KINDS += [f"joint:{rival}@conv" for rival in RIVALS]
"""component, how noise enters it (joint only), and backbone, as component:noise@backbone."""
ALL = pytest.mark.parametrize("kind", KINDS)


def small(**values: object) -> Model:
    return Model(**{"num_input_frames": 2, "inner_dim": 16, "num_heads": 2, **values})  # type: ignore[arg-type]


def component_of(kind: str) -> str:
    return kind.partition("@")[0].partition(":")[0]


def settings_of(kind: str) -> dict[str, object]:
    """The config fields that make a network of this kind."""
    network, _, backbone = kind.partition("@")
    component, _, noise = network.partition(":")
    return {"train.component": component, "model.backbone": backbone, **({"sde.noise": noise} if noise else {})}


def build(kind: str, *, seed: int = 0, **values: object) -> nn.Module:
    settings = settings_of(kind)
    torch.manual_seed(seed)
    model = small(backbone=settings["model.backbone"], **values)
    noise = settings.get("sde.noise", "additive")
    return build_component(component_of(kind), model, CHANNELS, noise)  # type: ignore[arg-type]


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 2 * CHANNELS, HEIGHT, WIDTH, generator=generator), torch.tensor([0.0, 0.7])


def awake(module: nn.Module) -> nn.Module:
    """The module, with noise in place of the zeros that make its residual blocks the identity at first."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    return module
