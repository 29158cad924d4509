"""What flow f, denoiser d and diffusion g are trained to minimise (the design's section 1)."""

import math

import torch
from torch import Tensor


def flow_nll(prediction: Tensor, velocity: Tensor, delta: float) -> Tensor:
    """mean(log((v - f)^2 + delta) - log delta): 0 where the flow is exact, and forgiving of outliers."""
    return ((velocity - prediction).square() + delta).log().mean() - math.log(delta)


def flow_mse(prediction: Tensor, velocity: Tensor) -> Tensor:
    """mean((v - f)^2): its minimiser is the conditional mean of the velocity."""
    return (velocity - prediction).square().mean()


def denoiser(prediction: Tensor, noise: Tensor) -> Tensor:
    """mean((d + eps)^2): d points back, from the noisy state to the clean one."""
    return (prediction + noise).square().mean()


def diffusion_regression(g: Tensor, residual: Tensor) -> Tensor:
    """mean((g - |r|)^2) + mean((log g - log(r^2 + 1e-6) / 2)^2), as published."""
    log_residual = 0.5 * (residual.square() + 1e-6).log()
    return (g - residual.abs()).square().mean() + (g.log() - log_residual).square().mean()


def diffusion_nll(g: Tensor, residual: Tensor) -> Tensor:
    """mean(r^2 / (2 g^2) + log g): the Gaussian log score, least where g is the residual's true scale."""
    return (residual.square() / (2 * g.square()) + torch.log(g)).mean()
