"""The networks of the SDE: flow, denoiser and diffusion, as defined in `raypipe.sde`."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.models.backbone import Backbone


class Flow(nn.Module):
    """The flow f: velocity of the last frame of the state, in latent units per frame interval."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] and time u [b] within the frame interval -> velocity [b, C, h, w]."""
        out: Tensor = self.network(x, u)
        return out


class Denoiser(nn.Module):
    """The denoiser d: an estimate of -eps, where eps is the noise in the state."""

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] -> [b, K*C, h, w]. u is ignored, and accepted so that all networks are called alike."""
        out: Tensor = self.network(x)
        return out


class Diffusion(nn.Module):
    """The diffusion g: positive diffusion coefficient of the last frame of the state, with log g in `logit_range`."""

    def __init__(self, network: Backbone, logit_range: tuple[float, float] = (-9.0, 1.0)) -> None:
        super().__init__()
        self.network = network
        self.logit_range = logit_range

    def raw(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """The raw output o of the network, [b, C, h, w], unbounded."""
        out: Tensor = self.network(x, u)
        return out

    def log_g(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """log g = lo + (tanh(o) + 1)/2 (hi - lo), [b, C, h, w]."""
        low, high = self.logit_range
        return low + (torch.tanh(self.raw(x, u)) + 1) * ((high - low) / 2)

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] and time u [b] within the frame interval -> g [b, C, h, w]."""
        return self.log_g(x, u).exp()


def _flow(model: config.Model, channels: int) -> nn.Module:
    return Flow(_backbone(model, channels, channels, model.time_input))


def _denoiser(model: config.Model, channels: int) -> nn.Module:
    return Denoiser(_backbone(model, channels, model.num_input_frames * channels, False))


def _diffusion(model: config.Model, channels: int) -> nn.Module:
    return Diffusion(_backbone(model, channels, channels, model.time_input), model.logit_range)


def _backbone(model: config.Model, latent_channels: int, out_channels: int, time_input: bool) -> Backbone:
    return Backbone(
        in_channels=model.num_input_frames * latent_channels,
        out_channels=out_channels,
        inner_dim=model.inner_dim,
        depth=model.depth,
        mid_depth=model.mid_depth,
        num_heads=model.num_heads,
        out_norm=model.out_norm,
        dropout=model.dropout,
        time_input=time_input,
    )


_BUILDERS: Mapping[str, Callable[[config.Model, int], nn.Module]] = {
    "flow": _flow,
    "denoiser": _denoiser,
    "diffusion": _diffusion,
}


def build_component(component: str, model: config.Model, latent_channels: int) -> nn.Module:
    """Create a `flow`, `denoiser` or `diffusion` for latents of `latent_channels` channels.

    Its weights are drawn from torch's global generator, so call torch.manual_seed first. Raises ValueError for an
    unknown component or if latent_channels is below 1.
    """
    if component not in _BUILDERS:
        raise ValueError(f"component: must be one of {', '.join(_BUILDERS)}, not {component!r}")
    if latent_channels < 1:
        raise ValueError(f"latent_channels: must be at least 1, not {latent_channels}")
    return _BUILDERS[component](model, latent_channels)
