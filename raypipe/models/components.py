"""The networks of the SDE: flow, denoiser, diffusion, and flow and diffusion in one, as defined in `raypipe.sde`.

All are called as `module(x, u, noise)`, with the state x [b, K*C, h, w], the time u [b] within the frame interval and
what a network sees of the noise, [b, C, h, w]; a network ignores what it does not use.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.models.backbones import build_backbone
from raypipe.sde import dynamics
from raypipe.sde.dynamics import Dynamics, Evaluate, Field


class Flow(nn.Module):
    """The flow f: velocity of the last frame of the state, in latent units per frame interval."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] and time u [b] within the frame interval -> velocity [b, C, h, w]."""
        out: Tensor = self.network(x, u)
        return out


class Denoiser(nn.Module):
    """The denoiser d: an estimate of -eps, where eps is the noise in the state."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] -> [b, K*C, h, w]."""
        out: Tensor = self.network(x)
        return out


class Diffusion(nn.Module):
    """The diffusion g: positive diffusion coefficient of the last frame of the state, with log g in `logit_range`."""

    def __init__(self, network: nn.Module, logit_range: tuple[float, float] = (-9.0, 1.0)) -> None:
        super().__init__()
        self.network = network
        self.logit_range = logit_range

    def raw(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """The raw output o of the network, [b, C, h, w], unbounded."""
        out: Tensor = self.network(x, u)
        return out

    def log_g(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        """log g = lo + (tanh(o) + 1)/2 (hi - lo), [b, C, h, w]."""
        return bounded(self.raw(x, u), self.logit_range)

    def forward(self, x: Tensor, u: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w] and time u [b] within the frame interval -> g [b, C, h, w]."""
        return self.log_g(x, u).exp()


class Joint(nn.Module):
    """Flow and noise in one network, evaluated once per step.

    noise `additive`: one trunk with two heads, f and g; else a flow f(X_0, u, q) whose input q says where on the way to
    the next frame it is, by noise or not (`raypipe.sde.interpolants`), without g. channels: C. scale: c [C, 1, 1], the
    unit of q and f, which `raypipe.training.component` sets to the root mean square of z_{t+1} - z_t in the training
    latents.
    """

    def __init__(
        self,
        network: nn.Module,
        channels: int,
        noise: config.Noise = "additive",
        logit_range: tuple[float, float] = (-9.0, 1.0),
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = channels
        self.noise: config.Noise = noise
        self.logit_range = logit_range
        self.scale: Tensor
        if self.interpolates:
            self.register_buffer("scale", torch.ones(channels, 1, 1))

    @property
    def interpolates(self) -> bool:
        """Whether it is a flow along an interpolant, see `noise`."""
        return self.noise != "additive"

    def forward(self, x: Tensor, u: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """State [b, K*C, h, w], time u [b] and q [b, C, h, w] -> (f, g) [b, 2*C, h, w], or f [b, C, h, w].

        noise None: q = 0. q is ignored if noise is additive.
        """
        if self.interpolates:
            q = x.new_zeros(len(x), self.channels, *x.shape[2:]) if noise is None else noise / self.scale
            out: Tensor = self.scale * self.network(torch.cat([x, q], dim=1), u)
            return out
        f, o = self.network(x, u).chunk(2, dim=1)
        return torch.cat([f, bounded(o, self.logit_range).exp()], dim=1)

    def dynamics(
        self,
        denoiser: Field | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        evaluate: Evaluate = dynamics.evaluate,
    ) -> Dynamics:
        """The SDE whose flow and noise are those of this network."""
        if not self.interpolates:
            return Dynamics(self, denoiser, self, alpha, beta, evaluate=evaluate)
        return Dynamics.along(self.noise, self, self.scale, denoiser, alpha=alpha, beta=beta, evaluate=evaluate)


def bounded(raw: Tensor, logit_range: tuple[float, float]) -> Tensor:
    """log g in `logit_range` from the raw output of a network."""
    low, high = logit_range
    return low + (torch.tanh(raw) + 1) * ((high - low) / 2)


def _flow(model: config.Model, channels: int, noise: config.Noise) -> nn.Module:
    return Flow(build_backbone(model, model.num_input_frames * channels, channels, model.time_input))


def _denoiser(model: config.Model, channels: int, noise: config.Noise) -> nn.Module:
    state = model.num_input_frames * channels
    return Denoiser(build_backbone(model, state, state, False))


def _diffusion(model: config.Model, channels: int, noise: config.Noise) -> nn.Module:
    network = build_backbone(model, model.num_input_frames * channels, channels, model.time_input)
    return Diffusion(network, model.logit_range)


def _joint(model: config.Model, channels: int, noise: config.Noise) -> nn.Module:
    state, seen = model.num_input_frames * channels, 0 if noise == "additive" else channels
    network = build_backbone(model, state + seen, channels if seen else 2 * channels, model.time_input)
    return Joint(network, channels, noise, model.logit_range)


_BUILDERS: Mapping[str, Callable[[config.Model, int, config.Noise], nn.Module]] = {
    "flow": _flow,
    "denoiser": _denoiser,
    "diffusion": _diffusion,
    "joint": _joint,
}


def build_component(
    component: str, model: config.Model, latent_channels: int, noise: config.Noise = "additive"
) -> nn.Module:
    """Create a `flow`, `denoiser`, `diffusion` or `joint` for latents of `latent_channels` channels.

    noise: how noise enters a joint network; the others ignore it. The weights are drawn from torch's global generator,
    so call torch.manual_seed first. Raises ValueError for an unknown component or if latent_channels is below 1.
    """
    if component not in _BUILDERS:
        raise ValueError(f"component: must be one of {', '.join(_BUILDERS)}, not {component!r}")
    if latent_channels < 1:
        raise ValueError(f"latent_channels: must be at least 1, not {latent_channels}")
    return _BUILDERS[component](model, latent_channels, noise)
