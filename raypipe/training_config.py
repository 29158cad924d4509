"""The sections of a config that say what is trained: the autoencoder, the components' network, and a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from raypipe.rules import Section, option, require, require_least

Component = Literal["flow", "denoiser", "diffusion"]
COMPONENTS: tuple[Component, ...] = ("flow", "denoiser", "diffusion")
LOSSES: Mapping[Component, tuple[str, ...]] = {
    "flow": ("nll", "mse"),
    "denoiser": (),
    "diffusion": ("regression", "nll"),
}
"""The loss choices of each component, the published one first; a denoiser has just one loss."""


@dataclass(frozen=True)
class Autoencoder(Section):
    """The network between frames and latents, and its training."""

    type: Literal["conv", "vqvae", "vqgan", "kl"] = option(
        "conv", "`conv`: small, for the demo; `vqvae`: the published one; `vqgan`, `kl`: only from `path`"
    )
    path: str | None = option(None, "folder or published file of a trained autoencoder; none: train one")
    channels: int = option(4, "channels of a latent frame")
    width: int = option(32, "channels of the first layer (conv)")
    num_embeddings: int = option(8192, "codes of the quantizer (vqvae)")
    steps: int = option(2000, "training steps")
    batch_size: int = option(8, "frames a step, over all workers")
    learning_rate: float = option(4e-3, "peak learning rate")
    weight_decay: float = option(0.0, "AdamW's weight decay")
    foreground_weight: float = option(3.0, "weight of pixels that differ from the clip's median frame; 1: all alike")
    symmetries: bool = option(True, "train on flips and transposes too")

    def __post_init__(self) -> None:
        require_least(1, self, "autoencoder", "channels", "width", "num_embeddings", "steps", "batch_size")
        require(self.learning_rate > 0, "autoencoder.learning_rate", "above 0", self.learning_rate)
        trained = self.path is not None or self.type in ("conv", "vqvae")
        require(trained, "autoencoder.path", f"given for a {self.type}, which is not trained here", self.path)
        require(self.foreground_weight >= 1, "autoencoder.foreground_weight", "at least 1", self.foreground_weight)


@dataclass(frozen=True)
class Model(Section):
    """The network that flow, denoiser and diffusion share."""

    num_input_frames: int = option(4, "K: latent frames in the state")
    inner_dim: int = option(64, "width of a token")
    depth: int = option(1, "blocks before the middle, and after it")
    mid_depth: int = option(1, "blocks in the middle")
    num_heads: int = option(2, "attention heads")
    out_norm: Literal["ln", "bn"] = option("ln", "norm of the head: LayerNorm or BatchNorm")
    dropout: float = option(0.0, "dropout in the blocks")
    time_input: bool = option(True, "flow and diffusion see the position u inside the frame interval")
    logit_range: tuple[float, float] = option((-9.0, 1.0), "range of log g")

    def __post_init__(self) -> None:
        require_least(1, self, "model", "num_input_frames", "inner_dim", "depth", "mid_depth", "num_heads")
        width, heads = self.inner_dim, self.num_heads
        rule = f"even and a multiple of model.num_heads ({heads})"
        require(width % 2 == 0 and width % heads == 0, "model.inner_dim", rule, width)
        require(0 <= self.dropout < 1, "model.dropout", "from 0 to below 1", self.dropout)
        require(self.logit_range[0] < self.logit_range[1], "model.logit_range", "[low, high]", self.logit_range)


@dataclass(frozen=True)
class Train(Section):
    """One component's training."""

    component: Component = option("flow", "flow, denoiser or diffusion")
    noise_std: float = option(0.1, "noise level s, in units of a latent channel's standard deviation")
    loss: Literal["nll", "mse", "regression"] | None = option(
        None, "flow: nll or mse; diffusion: nll or regression; none: the published one"
    )
    steps: int = option(1500, "training steps")
    batch_size: int = option(16, "windows a step, over all workers")
    learning_rate: float = option(3e-3, "peak learning rate")
    weight_decay: float = option(5e-6, "AdamW's weight decay")
    schedule: Literal["cosine", "sqrt"] = option(
        "cosine", "decay after the warm-up: cosine to 0, or as published with the square root of what is left"
    )
    warmup_steps: int = option(75, "steps of linear warm-up")
    clip_norm: float | None = option(1.0, "gradients are clipped to this norm; none: not at all, as published")
    accumulate: int = option(1, "parts that a worker's share of a batch is cut into; more parts take less memory")
    ema: float = option(0.95, "decay of the moving average of the weights, which is then the model; 0: none")
    checkpoint_every: int = option(250, "steps between checkpoints")
    random_seed: int = option(0, "seed of weights, windows and noise")
    num_workers: int = option(1, "Ray Train workers")
    cpus_per_worker: int = option(1, "CPUs, and torch threads, of a Ray Train worker")
    max_failures: int = option(3, "worker failures a run survives")
    compile: bool = option(False, "torch.compile the network")
    flow: str | None = option(None, "run or trial name of the flow that a diffusion is trained on")

    def __post_init__(self) -> None:
        require(self.noise_std >= 0, "train.noise_std", "at least 0", self.noise_std)
        require_least(1, self, "train", "steps", "batch_size", "checkpoint_every", "num_workers", "cpus_per_worker")
        require_least(0, self, "train", "warmup_steps", "max_failures", "random_seed")
        require(self.learning_rate > 0, "train.learning_rate", "above 0", self.learning_rate)
        require(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", "above 0, or none", self.clip_norm)
        require(0 <= self.ema < 1, "train.ema", "from 0 to below 1", self.ema)
        rule = f"a multiple of train.num_workers ({self.num_workers})"
        require(self.batch_size % self.num_workers == 0, "train.batch_size", rule, self.batch_size)
        share = self.batch_size // self.num_workers
        rule = f"from 1 to {share}, a worker's share of a batch"
        require(1 <= self.accumulate <= share, "train.accumulate", rule, self.accumulate)
        choices = LOSSES[self.component]
        rule = f"{' or '.join(choices) or 'left out'} for a {self.component}"
        require(self.loss is None or self.loss in choices, "train.loss", rule, self.loss)
