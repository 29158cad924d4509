"""Sections of a config: autoencoder, network, training, SDE and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from raypipe.config.fields import Section, option, require, require_least

Component = Literal["flow", "denoiser", "diffusion", "joint"]
COMPONENTS: tuple[Component, ...] = ("flow", "denoiser", "diffusion", "joint")
REFERENCE_COMPONENTS: tuple[Component, ...] = COMPONENTS[:3]
"""The components of the reference code."""
SCORES = ("crps_energy", "crps", "energy")
"""The losses that are scores of forecasts."""
LOSSES: Mapping[Component, tuple[str, ...]] = {
    "flow": ("nll", "mse"),
    "denoiser": (),
    "diffusion": ("regression", "nll", *SCORES),
    "joint": SCORES,
}
"""The losses that each component can be trained with, the default first. The denoiser has a single, unnamed loss."""
Backbone = Literal["transformer", "conv"]
Rival = Literal["flow_matching", "foellmer"]
RIVALS: tuple[Rival, ...] = ("flow_matching", "foellmer")
Noise = Literal["additive", "input", "flow_matching", "foellmer"]


@dataclass(frozen=True)
class Autoencoder(Section):
    """The autoencoder that maps frames to latents and back, and how it is trained."""

    type: Literal["conv", "vqvae", "vqgan", "kl"] = option(
        "conv",
        "conv: a small network for the demo; vqvae: as in the reference code; vqgan, kl: cannot be trained here, "
        "only loaded from autoencoder.path",
    )
    path: str | None = option(
        None, "folder or checkpoint file of a trained autoencoder, such as a released checkpoint; null: train one"
    )
    channels: int = option(4, "channels of a latent frame")
    width: int = option(32, "channels of the first layer (conv only)")
    num_embeddings: int = option(8192, "size of the codebook (vqvae only)")
    steps: int = option(2000, "training steps of the autoencoder")
    batch_size: int = option(8, "frames per training step, over all workers")
    learning_rate: float = option(4e-3, "peak learning rate")
    weight_decay: float = option(0.0, "weight decay of AdamW")
    foreground_weight: float = option(
        3.0, "loss weight of pixels that differ from the clip's median frame; all others have weight 1"
    )
    symmetries: bool = option(True, "augment training frames with random flips and transposes")

    def __post_init__(self) -> None:
        require_least(1, self, "autoencoder", "channels", "width", "num_embeddings", "steps", "batch_size")
        require(self.learning_rate > 0, "autoencoder.learning_rate", "above 0", self.learning_rate)
        trained = self.path is not None or self.type in ("conv", "vqvae")
        rule = f"the path of a trained {self.type} autoencoder (raypipe cannot train one)"
        require(trained, "autoencoder.path", rule, self.path)
        require(self.foreground_weight >= 1, "autoencoder.foreground_weight", "at least 1", self.foreground_weight)


@dataclass(frozen=True)
class Model(Section):
    """The architecture that the networks of flow, denoiser, diffusion and joint have in common."""

    num_input_frames: int = option(4, "K: number of given frames; the state consists of their latents")
    inner_dim: int = option(64, "width of the network: features per latent pixel")
    depth: int = option(1, "number of blocks before the middle ones, and again after them")
    mid_depth: int = option(1, "number of blocks in the middle")
    num_heads: int = option(2, "attention heads per block (transformer only)")
    out_norm: Literal["ln", "bn"] = option(
        "ln", "normalization in the output head (transformer only); ln: LayerNorm, bn: BatchNorm"
    )
    dropout: float = option(0.0, "dropout probability in the blocks")
    time_input: bool = option(
        True, "whether flow and diffusion get u, the time in [0, 1] within a frame interval, as an input"
    )
    logit_range: tuple[float, float] = option(
        (-9.0, 1.0), "[low, high]: range of log g, where g is the output of the diffusion network"
    )
    backbone: Backbone = option(
        "transformer",
        "transformer: the reference network; conv: residual convolutions, from 16x16 latents on as a small U-Net",
    )

    def __post_init__(self) -> None:
        require_least(1, self, "model", "num_input_frames", "inner_dim", "depth", "mid_depth", "num_heads")
        width, heads = self.inner_dim, self.num_heads
        rule = f"even and a multiple of model.num_heads ({heads})"
        require(width % 2 == 0 and width % heads == 0, "model.inner_dim", rule, width)
        require(0 <= self.dropout < 1, "model.dropout", "from 0 to below 1", self.dropout)
        require(self.logit_range[0] < self.logit_range[1], "model.logit_range", "[low, high]", self.logit_range)


@dataclass(frozen=True)
class Train(Section):
    """The training of one component."""

    component: Component = option("flow", "component to train: flow, denoiser, diffusion or joint")
    noise_std: float = option(
        0.1, "s: standard deviation of the noise added to the state, relative to that of the latents"
    )
    loss: Literal["nll", "mse", "regression", "crps_energy", "crps", "energy"] | None = option(
        None,
        "flow: nll or mse; diffusion: regression, nll or the score of forecasts with its flow, crps, energy or "
        "crps_energy (their sum); joint: the score of its forecasts; null: the first of these, crps_energy for joint; "
        "a denoiser takes only null",
    )
    score_share: float = option(
        0.5,
        "fraction of the steps, the last ones, trained on the score of forecasts, if that is the loss; before, on the "
        "velocity (a diffusion: nll)",
    )
    forecast_frames: int = option(
        1, "number of frames of a forecast whose score is trained on, at most evaluation.horizon"
    )
    forecast_members: int = option(2, "members of a forecast whose score is trained on")
    steps: int = option(1500, "training steps")
    batch_size: int = option(16, "windows of K + 1 frames per training step, over all workers")
    learning_rate: float = option(3e-3, "peak learning rate")
    weight_decay: float = option(5e-6, "weight decay of AdamW")
    schedule: Literal["cosine", "sqrt"] = option(
        "cosine",
        "learning-rate decay after the warm-up; cosine: to 0; sqrt: to a thousandth of the peak, with the square root "
        "of the fraction of steps left, as in the reference code",
    )
    warmup_steps: int = option(75, "steps of linear learning-rate warm-up")
    clip_norm: float | None = option(1.0, "largest norm of the gradient; null: no clipping, as in the reference code")
    accumulate: int = option(
        1, "gradient accumulation: micro-batches per worker and step; more of them take less memory"
    )
    ema: float = option(
        0.95, "decay of the exponential moving average of the weights, which is saved as the model; 0: no averaging"
    )
    checkpoint_every: int = option(250, "training steps between checkpoints")
    validate_every: int | None = option(
        None,
        "training steps between scores on validation, of which the best weights are kept as the model; not in trials "
        "of a search, which are scored at their rungs, nor for a denoiser without a flow; null: a tenth of the steps "
        "(more where this would take long) if the training data are few for so many steps, else as 0; 0: no scores, "
        "the last weights are kept",
    )
    patience: int | None = option(
        4,
        "a training ends after this many scores on validation without a better one; null: at the last step",
    )
    random_seed: int = option(0, "seed of the initial weights, the order of windows and the noise")
    num_workers: int = option(1, "number of Ray Train workers")
    cpus_per_worker: int = option(1, "CPUs, and torch threads, per Ray Train worker")
    max_failures: int = option(3, "how many worker failures a run recovers from")
    compile: bool = option(False, "compile the network with torch.compile")
    flow: str | None = option(
        None, "name of the flow run or trial that a diffusion is trained on; null: the best flow of the experiment"
    )

    def __post_init__(self) -> None:
        require(self.noise_std >= 0, "train.noise_std", "at least 0", self.noise_std)
        require_least(1, self, "train", "steps", "batch_size", "checkpoint_every", "num_workers", "cpus_per_worker")
        require_least(0, self, "train", "warmup_steps", "max_failures", "random_seed")
        rule = "at least 0, or null"
        every, patience = self.validate_every, self.patience
        require(every is None or every >= 0, "train.validate_every", rule, every)
        require(patience is None or patience >= 1, "train.patience", "at least 1, or null", patience)
        require(self.learning_rate > 0, "train.learning_rate", "above 0", self.learning_rate)
        require(self.clip_norm is None or self.clip_norm > 0, "train.clip_norm", "above 0, or null", self.clip_norm)
        require(0 <= self.ema < 1, "train.ema", "from 0 to below 1", self.ema)
        require(0 <= self.score_share <= 1, "train.score_share", "from 0 to 1", self.score_share)
        require_least(1, self, "train", "forecast_frames")
        require_least(2, self, "train", "forecast_members")
        rule = f"a multiple of train.num_workers ({self.num_workers})"
        require(self.batch_size % self.num_workers == 0, "train.batch_size", rule, self.batch_size)
        share = self.batch_size // self.num_workers
        rule = f"from 1 to {share}, a worker's share of a batch"
        require(1 <= self.accumulate <= share, "train.accumulate", rule, self.accumulate)
        choices = LOSSES[self.component]
        rule = f"{', '.join(choices[:-1])} or {choices[-1]}" if choices else "left out"
        rule += f" for a {self.component}"
        require(self.loss is None or self.loss in choices, "train.loss", rule, self.loss)

    @property
    def scores_forecasts(self) -> bool:
        """Whether the loss is the score of forecasts."""
        return self.component == "joint" or self.loss in SCORES

    @property
    def samples(self) -> int:
        """Number of samples that pass the network in training: windows, or each frame and member of their forecasts."""
        scored = self.steps - self.velocity_steps if self.scores_forecasts else 0
        return self.batch_size * (self.steps + scored * (self.forecast_members * self.forecast_frames - 1))

    @property
    def velocity_steps(self) -> int:
        """Number of steps on the velocity, before those on the score of forecasts; 0 if that is not the loss."""
        return round((1 - self.score_share) * self.steps) if self.scores_forecasts else 0


def solver_name(name: Any) -> Any:
    """The current name of a solver: earlier configs and manifests call `heun_drift` `heun`."""
    return "heun_drift" if name == "heun" else name


Solver = Annotated[Literal["euler_maruyama", "milstein", "heun_drift"], BeforeValidator(solver_name)]
SOLVERS: tuple[Solver, ...] = ("euler_maruyama", "milstein", "heun_drift")
"""The solvers that `raypipe.sde.solvers` defines."""


Objective = Literal["crps_ratio", "nfe_per_frame"]


@dataclass(frozen=True)
class Sde(Section):
    """How noise acts, and constants of the path between two states and of the losses; `raypipe.sde` defines them."""

    noise: Noise = option(
        "input",
        "how noise enters a joint network; additive: as g dW, with flow and diffusion as its two heads; input: the "
        "network sees the Brownian increment of the frame interval beside the state, and g is left out; flow_matching, "
        "foellmer: the processes of `rivals`",
    )
    sigma: float = option(1e-7, "sigma: weight of the earlier state at the end of the path between two states")
    delta: float = option(1e-3, "delta: constant in the flow's nll loss, log((v - f)^2 + delta)")
    zero_share: float = option(0.3, "fraction of training samples at u = 0; no effect if model.time_input is false")

    def __post_init__(self) -> None:
        require(0 <= self.sigma < 1, "sde.sigma", "from 0 to below 1", self.sigma)
        require(self.delta > 0, "sde.delta", "above 0", self.delta)
        require(0 <= self.zero_share <= 1, "sde.zero_share", "from 0 to 1", self.zero_share)


@dataclass(frozen=True)
class Evaluation(Section):
    """How trials and combinations of components are scored."""

    windows: int = option(
        64, "validation windows (given and predicted frames of a clip) on which trials and combinations are scored"
    )
    test_windows: int = option(128, "test windows on which the chosen combination and the baselines are scored, once")
    fit_windows: int = option(
        16, "training windows on which the best of evaluation.multipliers and evaluation.betas is chosen"
    )
    horizon: int = option(8, "number of predicted frames")
    members: int = option(4, "ensemble members per forecast on validation windows")
    test_members: int = option(4, "ensemble members per forecast on test windows")
    steps: list[int] = option(
        [1], "integration steps per frame; combinations are scored with each of them, trials with the first"
    )
    solvers: list[Solver] = option(
        ["euler_maruyama"],
        "SDE solvers (euler_maruyama, milstein, heun_drift); combinations are scored with each, trials with the first",
    )
    models: Literal["best", "all"] = option(
        "all",
        "which trainings of a joint network forecast; best: that of the best seed; all: combinations in which the "
        "members take turns with the trainings of all seeds are scored too, at the same cost per member",
    )
    alphas: list[float] = option(
        [1.0], "values of alpha, the weight of the denoiser in the drift; combinations are scored with each of them"
    )
    multipliers: list[float] = option(
        [0.3, 0.45, 0.65, 0.85, 1.1],
        "candidates for the size of a constant diffusion, in units of the flow's residual standard deviation",
    )
    betas: list[float] = option(
        [0.5, 0.75, 1.0, 1.5, 2.0], "candidates for beta, the factor by which the diffusion network is multiplied"
    )
    choose_by: Literal["latents", "pixels", "both"] = option(
        "both",
        "CRPS ratio by which one of the finalists is chosen on validation; both: the product of the ratios in latents "
        "and in pixels, among those that are better in pixels than repeating the last frame, if any is",
    )
    decoding: Literal["best", "plain", "anchored", "fading", "copied"] = option(
        "best",
        "how latents become frames; plain: by the decoder alone; anchored: what the autoencoder has lost of the last "
        "given frame is added; fading: less of it from frame to frame; copied: pixels that a forecast leaves as they "
        "are come from the last given frame; best: the best of these for each combination, on validation",
    )
    i3d_weights: str | None = option(None, "file with the weights of I3D, for FVD; null: no FVD")
    lpips_weights: str | None = option(None, "file with the weights of LPIPS; null: no LPIPS")
    vjepa_weights: str | None = option(None, "file with the weights of V-JEPA, for JEDi; null: no JEDi")
    climatology_members: int = option(
        16, "ensemble members of the climatology baseline, which are random training frames"
    )
    finalists: int = option(2, "how many of the best combinations are also scored in pixels on the validation windows")
    batch_size: int | None = option(
        None, "forecasts (windows x members) integrated at once; null: chosen from the free GPU memory, 64 on a CPU"
    )
    compile: bool = option(
        False,
        "compile the networks with torch.compile; takes minutes, so it saves time only if many forecasts are made",
    )
    seed: int = option(0, "seed of the choice of windows and of the noise; the same for all trials")

    def __post_init__(self) -> None:
        require_least(1, self, "evaluation", "windows", "test_windows", "fit_windows", "horizon", "finalists")
        require(self.batch_size is None or self.batch_size >= 1, "evaluation.batch_size", "at least 1", self.batch_size)
        require(bool(self.solvers), "evaluation.solvers", "a list of at least one solver", self.solvers)
        require_least(2, self, "evaluation", "members", "test_members", "climatology_members")
        rule = "a list of one or more positive integers"
        require(bool(self.steps) and min(self.steps) >= 1, "evaluation.steps", rule, self.steps)
        rule = "a list of one or more numbers that are at least 0"
        require(bool(self.alphas) and min(self.alphas) >= 0, "evaluation.alphas", rule, self.alphas)
        rule = "a list of one or more positive numbers"
        multipliers = self.multipliers
        require(bool(multipliers) and min(multipliers) > 0, "evaluation.multipliers", rule, multipliers)
        require(bool(self.betas) and min(self.betas) > 0, "evaluation.betas", rule, self.betas)
