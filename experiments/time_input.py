"""Comparison of time inputs of the flow: `python experiments/time_input.py [--seeds 3]`.

Trains variants of the demo's flow (loss mse) with several seeds: without the time u, as in the reference network; with
u, for several fractions of training samples at u = 0 (sde.zero_share); with other encodings of u; and with the older
frames of the state constant within the interval, instead of moving to their successors. Prints R2 of the velocity at
u = 0 and the CRPS ratio with a constant diffusion at 1, 2, 4 and 8 steps, on validation windows. Results are appended
to <storage>/<name>/time_input.jsonl; if interrupted, the same command continues.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raypipe import cli, config
from raypipe.common import terminal
from raypipe.common.seeds import step_generator
from raypipe.config import Experiment
from raypipe.data.batches import TrainBatch, WindowBatches
from raypipe.data.windows import Sampler, WindowIndex
from raypipe.distributed.connection import start_ray
from raypipe.distributed.prepare import prepare
from raypipe.forecast import scoring
from raypipe.forecast.windows import forecast_windows
from raypipe.models.components import build_component
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics, Interval
from raypipe.sde.path import Draws, draw, sample_path, stack, velocity
from raypipe.training.component import component_schedule
from raypipe.training.loop import Progress, fit, make_optimizer
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

STEPS = (1, 2, 4, 8)
"""Integration steps per frame interval."""
RECIPE = {"name": "time_input", "train.loss": "mse", "train.steps": 1000}


class Embedded(nn.Module):
    """Sines and cosines of u at 8 frequencies, followed by two layers; replaces the Linear: [b, 1] -> [b, dim]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, u: Tensor) -> Tensor:
        angles = u * math.pi * torch.arange(1, 9, device=u.device)
        out: Tensor = self.layers(torch.cat([angles.sin(), angles.cos()], 1))
        return out


class Conditioned(nn.Module):
    """A flow whose every LayerNorm is scaled and shifted by functions of u (adaptive norms, arXiv 2212.09748)."""

    def __init__(self, flow: nn.Module, dim: int) -> None:
        super().__init__()
        self.flow = flow
        norms = [module for module in flow.modules() if isinstance(module, nn.LayerNorm)]
        self.embed = nn.Sequential(Embedded(dim), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in norms)
        for norm, head in zip(norms, self.heads, strict=True):
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            norm.register_forward_hook(self._modulate(head))

    def _modulate(self, head: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            scale, shift = head(self._at)[:, None, None].chunk(2, -1)
            modulated: Tensor = out * (1 + scale) + shift
            return modulated

        return hook

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """Velocity [b, C, h, w] of a state x [b, K*C, h, w] at times u [b]."""
        self._at = self.embed(u[:, None])
        out: Tensor = self.flow(x, u)
        return out


@dataclass(frozen=True)
class Variant:
    """A variant of the flow. time_input, zero_share: see the config. form: encoding of u. held: hold older frames."""

    name: str
    time_input: bool = True
    zero_share: float = 0.3
    form: str = "linear"
    held: bool = False


VARIANTS = (  # their names are stored in time_input.jsonl; "published" means as in the reference network
    Variant("no u (published)", time_input=False, zero_share=0.0),
    Variant("u, none at 0", zero_share=0.0),
    Variant("u, 0.1 at 0", zero_share=0.1),
    Variant("u, 0.3 at 0 (default)"),
    Variant("u, 0.6 at 0", zero_share=0.6),
    Variant("u embedded, 0.3 at 0", form="embedded"),
    Variant("u in the norms, 0.3 at 0", form="norms"),
    Variant("no u, older frames held", time_input=False, zero_share=0.0, held=True),
    Variant("u, 0.3 at 0, older frames held", held=True),
)


class HeldDynamics(Dynamics):
    """The SDE, with the older frames of the state constant within an interval."""

    def interval(self, start: Tensor, noise: Tensor | None = None) -> Interval:
        return HeldInterval(self, start)


class HeldInterval(Interval):
    """An interval of `HeldDynamics`: the drift of the older frames is 0."""

    def _drift(self, ahead: Tensor, denoising: Tensor | None = None) -> Tensor:
        drift, channels = super()._drift(ahead, denoising), ahead.shape[1]
        return torch.cat([torch.zeros_like(drift[:, :-channels]), drift[:, -channels:]], 1)


class Task:
    """The loss of a variant: mean squared error of the velocity."""

    def __init__(self, module: nn.Module, experiment: Experiment, variant: Variant) -> None:
        self.module, self._experiment, self._variant = module, experiment, variant

    def loss(self, batch: TrainBatch) -> Tensor:
        window, train = batch.data, self._experiment.train
        shape = (window.shape[2] * (window.shape[1] - 1), *window.shape[3:])
        generator = step_generator(train.random_seed, batch.step, 0)
        draws: Draws = draw(generator, batch.total, shape, self._variant.zero_share)
        sample = sample_path(window, draws, train.noise_std, self._experiment.sde.sigma)
        noisy, channels = sample.noisy, window.shape[2]
        if self._variant.held:
            older = (stack(window[:, :-1]) + sample.noise)[:, :-channels]
            noisy = torch.cat([older, noisy[:, -channels:]], 1)
        out: Tensor = self.module(noisy, sample.time)
        return (sample.velocity - out).square().mean()


def train_flow(experiment: Experiment, data: ExperimentData, variant: Variant) -> nn.Module:
    """Train the flow of a variant with the `train` section of the config."""
    train = experiment.train
    model = config.replace(experiment, **{"model.time_input": variant.time_input and variant.form != "norms"}).model
    torch.manual_seed(train.random_seed)
    module = build_component("flow", model, data.channels)
    if variant.form == "embedded":
        module.network.time_input = Embedded(model.inner_dim)  # type: ignore[union-attr]
    elif variant.form == "norms":
        module = Conditioned(module, model.inner_dim)
    shards = data.training_shards()
    index = WindowIndex(shards.lengths, model.num_input_frames + 1)
    sampler = Sampler(len(index), train.batch_size, train.random_seed, borders=index.borders(shards.shard_of))
    batches = WindowBatches(shards, index.window, 1, sampler)
    schedule = component_schedule(train)
    with terminal.progress_bar(f"{variant.name}, seed {train.random_seed}", schedule.steps, "step", leave=False) as bar:

        def report(progress: Progress) -> None:
            bar.update(progress.step - bar.n)

        task = Task(module, experiment, variant)
        fit(task, batches.batch, schedule, report, optimizer=make_optimizer(module, schedule), every=50)
    return module.eval().requires_grad_(False)


def scores(flow: nn.Module, experiment: Experiment, data: ExperimentData, variant: Variant) -> dict[str, float]:
    """R2 of the velocity at u = 0, and crps_ratio for each number of steps, each with its own fitted multiplier."""
    evaluation, sigma = experiment.evaluation, experiment.sde.sigma
    held_out = forecast_windows(data.latents("val"), experiment, evaluation.windows, evaluation.seed)
    fitting = forecast_windows(data.latents("train"), experiment, evaluation.fit_windows, evaluation.seed + 1)
    window = torch.cat([held_out.context, held_out.truth[:, :1]], 1)
    target = velocity(window, sigma)
    residual = target - flow(stack(held_out.context), torch.zeros(len(target)))
    spread = target - target.mean((0, 2, 3), keepdim=True)
    found = {"r2": 1 - (residual.square().sum() / spread.square().sum()).item()}
    std = scoring.residual_std(flow, fitting, sigma)
    kind = HeldDynamics if variant.held else Dynamics

    def make(multiplier: float) -> Dynamics:
        return kind(flow, diffusion=ConstantDiffusion(multiplier * std))

    for steps in STEPS:
        fitted = scoring.fit_magnitude(make, evaluation.multipliers, fitting, evaluation, steps)
        score = scoring.score(make(fitted.value), held_out, evaluation, steps)
        found[f"crps_{steps}"] = score.ratio.value
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser("time_input.py", "Compare time inputs of the flow.")
    parser.add_argument("--seeds", type=cli.positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    args, overrides = cli.parse(parser, argv)
    experiment = cli.experiment(args, {**RECIPE, **overrides})
    workspace = Workspace(cli.storage_root(args), experiment.name)
    start_ray()
    data = prepare(experiment, workspace)
    torch.set_num_threads(1)
    path = workspace.folder / "time_input.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in range(args.seeds):
        for variant in VARIANTS:
            if any(row["variant"] == variant.name and row["seed"] == seed for row in rows):
                continue
            seeded = config.replace(experiment, **{"train.random_seed": seed})
            found = scores(train_flow(seeded, data, variant), seeded, data, variant)
            rows.append({"variant": variant.name, "seed": seed, **found})
            with path.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    names = ("r2", *(f"crps_{steps}" for steps in STEPS))
    body = [
        [variant.name, *(_text([row[name] for row in rows if row["variant"] == variant.name]) for name in names)]
        for variant in VARIANTS
    ]
    terminal.say(terminal.table(body, ["flow", "R2 at u = 0", *(f"crps_ratio, {steps} steps" for steps in STEPS)]))
    terminal.say(f"\nwritten  {path}")
    return 0


def _text(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {spread:.3f}"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "time_input.py"))
