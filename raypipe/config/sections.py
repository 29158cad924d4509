"""The sections of a config that say what is trained: the autoencoder, the components' network, and a training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from raypipe.config.fields import Section, option, require, require_least

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


def solver_name(name: Any) -> Any:
    """A solver's name as it is now: `heun_drift` was called `heun` in earlier configs and manifests."""
    return "heun_drift" if name == "heun" else name


Solver = Annotated[Literal["euler_maruyama", "milstein", "heun_drift"], BeforeValidator(solver_name)]
SOLVERS: tuple[Solver, ...] = ("euler_maruyama", "milstein", "heun_drift")
"""`raypipe.sde.solvers` says what each is."""


Objective = Literal["crps_ratio", "nfe_per_frame"]


@dataclass(frozen=True)
class Dataset(Section):
    """Which videos, and how clips are cut out of them."""

    name: str = option("demo", "the dataset's name; `demo` is simulated on first use")
    root: str | None = option(
        None, "folder or URI (s3://, gs://, ...) with train/ val/ test/ below; none: <storage>/datasets/<name>"
    )
    cache: str = option("~/.cache/raypipe", "each node's folder for copies of shards whose root is a URI")
    cache_gb: float = option(50.0, "size of that folder; what was used longest ago makes room")
    stall_seconds: float = option(60.0, "a transfer from a URI fails when no byte comes for so long")
    image_size: int = option(64, "frames are squares of this many pixels")
    frame_stride: int = option(1, "take every k-th frame; one frame interval is then k video frames")
    num_frames: int = option(12, "frames of a clip that is forecast: the given ones and the predicted ones")
    horizontal_flip: bool = option(False, "flip half of the training clips; needs latents.mode: off")
    color_jitter: bool = option(False, "jitter the colours of training clips; needs latents.mode: off")

    def __post_init__(self) -> None:
        require(bool(re.fullmatch(r"[\w.-]+", self.name)), "dataset.name", "letters, digits, '.', '_', '-'", self.name)
        size = self.image_size
        require(size >= 16 and size % 8 == 0, "dataset.image_size", "a multiple of 8 from 16 on", size)
        require(self.cache_gb > 0, "dataset.cache_gb", "above 0", self.cache_gb)
        require(self.stall_seconds > 0, "dataset.stall_seconds", "above 0", self.stall_seconds)
        require(self.frame_stride >= 1, "dataset.frame_stride", "at least 1", self.frame_stride)


@dataclass(frozen=True)
class Demo(Section):
    """The simulated dataset: how many clips, and how hard they are to foresee."""

    train_clips: int = option(400, "clips of the training split")
    val_clips: int = option(64, "clips of the validation split")
    test_clips: int = option(128, "clips of the test split")
    clip_frames: int = option(24, "frames a clip")
    kick_probability: float = option(0.03, "chance that a body is kicked in a frame")
    seed: int = option(0, "seed of the simulation")

    def __post_init__(self) -> None:
        require_least(1, self, "demo", "train_clips", "val_clips", "test_clips", "clip_frames")
        require(0 <= self.kick_probability <= 1, "demo.kick_probability", "from 0 to 1", self.kick_probability)


@dataclass(frozen=True)
class Latents(Section):
    """Whether the components train on frames encoded once, or encoded anew every step."""

    mode: Literal["cache", "off"] = option("cache", "`cache`: encode every frame once; `off`: encode on the fly")

    @classmethod
    def from_yaml(cls, value: object) -> object:
        """`latents: off` (which YAML reads as false) and `latents: cache` are short for the mode."""
        return {"mode": "off"} if value is False else {"mode": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Sde(Section):
    """The path between two frames, and what is learnt along it."""

    sigma: float = option(1e-7, "width of the path at its end")
    delta: float = option(1e-3, "floor of the flow's `nll` loss")
    zero_share: float = option(0.3, "share of draws at u = 0, where the model sees u")

    def __post_init__(self) -> None:
        require(0 <= self.sigma < 1, "sde.sigma", "from 0 to below 1", self.sigma)
        require(self.delta > 0, "sde.delta", "above 0", self.delta)
        require(0 <= self.zero_share <= 1, "sde.zero_share", "from 0 to 1", self.zero_share)


@dataclass(frozen=True)
class Evaluation(Section):
    """The forecasts that trials and combinations are scored on."""

    windows: int = option(64, "held-out windows a trial is scored on")
    test_windows: int = option(128, "test windows that the chosen combination and the baselines are scored on, once")
    fit_windows: int = option(16, "training windows that multipliers and beta are fitted on")
    horizon: int = option(8, "frames predicted")
    members: int = option(4, "ensemble members of a forecast on validation")
    test_members: int = option(4, "ensemble members of a forecast on test")
    steps: list[int] = option([1, 2], "integration steps a frame to choose from; the first scores the trials")
    solvers: list[Solver] = option(
        ["euler_maruyama"], "solvers to choose from: euler_maruyama, milstein, heun_drift; the first scores the trials"
    )
    alphas: list[float] = option([1.0], "denoising magnitudes to choose from")
    multipliers: list[float] = option(
        [0.3, 0.45, 0.65, 0.85, 1.1], "multipliers of the flow's residual std to choose a constant diffusion from"
    )
    betas: list[float] = option([0.5, 0.75, 1.0, 1.5, 2.0], "diffusion magnitudes to choose from")
    climatology_members: int = option(16, "training frames in the climatology's ensemble")
    finalists: int = option(4, "combinations that are decoded and scored in pixels on validation")
    batch_size: int | None = option(
        None, "forecasts (windows x members) integrated at once; none: as many as fit, or as a CPU's caches like"
    )
    compile: bool = option(
        False, "torch.compile the networks of forecasts: minutes at first, then faster; pays where much is forecast"
    )
    seed: int = option(0, "seed of windows and noise; the same for every trial")

    def __post_init__(self) -> None:
        require_least(1, self, "evaluation", "windows", "test_windows", "fit_windows", "horizon", "finalists")
        require(self.batch_size is None or self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        require(bool(self.solvers), "evaluation.solvers", "one or more", self.solvers)
        require_least(2, self, "evaluation", "members", "test_members", "climatology_members")
        require(bool(self.steps) and min(self.steps) >= 1, "evaluation.steps", "one or more counts of 1 on", self.steps)
        require(bool(self.alphas) and min(self.alphas) >= 0, "evaluation.alphas", "one or more from 0 on", self.alphas)
        require(
            bool(self.multipliers) and min(self.multipliers) > 0,
            "evaluation.multipliers",
            "one or more above 0",
            self.multipliers,
        )
        require(bool(self.betas) and min(self.betas) > 0, "evaluation.betas", "one or more above 0", self.betas)
