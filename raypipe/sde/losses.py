"""Training losses of flow f, denoiser d and diffusion g; `raypipe.sde` defines the symbols. All return a scalar."""

import math

import torch
from torch import Tensor

NOISE_WEIGHT = 0.1
"""Weight of the diffusion's loss beside that of the flow, so that g does not spoil the trunk for f."""


def flow_nll(prediction: Tensor, velocity: Tensor, delta: float) -> Tensor:
    """mean(log((v - f)^2 + delta) - log delta), v and f [b, C, h, w]: 0 if the flow is exact, robust to outliers."""
    return ((velocity - prediction).square() + delta).log().mean() - math.log(delta)


def flow_mse(prediction: Tensor, velocity: Tensor) -> Tensor:
    """mean((v - f)^2), v and f [b, C, h, w], which is minimized by the conditional mean of the velocity."""
    return (velocity - prediction).square().mean()


def denoiser(prediction: Tensor, noise: Tensor) -> Tensor:
    """mean((d + eps)^2), d and eps [b, K*C, h, w]: d points from the noisy state to the clean one."""
    return (prediction + noise).square().mean()


def diffusion_regression(g: Tensor, residual: Tensor) -> Tensor:
    """mean((g - |r|)^2) + mean((log g - log(r^2 + 1e-6)/2)^2), g and r [b, C, h, w]: the loss of the reference code."""
    log_residual = 0.5 * (residual.square() + 1e-6).log()
    return (g - residual.abs()).square().mean() + (g.log() - log_residual).square().mean()


def diffusion_nll(g: Tensor, residual: Tensor) -> Tensor:
    """mean(r^2/(2 g^2) + log g), g and r [b, C, h, w]: Gaussian NLL, minimized by the standard deviation of r."""
    return (residual.square() / (2 * g.square()) + torch.log(g)).mean()


def joint(f: Tensor, g: Tensor, velocity: Tensor) -> Tensor:
    """mean((v - f)^2) + 0.1 mean(r^2/(2 g^2) + log g), f, g and v [b, C, h, w], for flow and diffusion in one network.

    r = v - f is a constant in the second term: otherwise, an error of f would count less wherever g is large.
    """
    return flow_mse(f, velocity) + NOISE_WEIGHT * diffusion_nll(g, (velocity - f).detach())
