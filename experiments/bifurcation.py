"""A two-dimensional example with two possible futures: `python experiments/bifurcation.py [--seeds 3]`.

The data are 100 trajectories that go straight for 45 steps and then turn by 30 degrees, 50 to the left and 50 to the
right (as in arXiv 2501.18871). Flow, denoiser and diffusion are small MLPs, trained and sampled with the same code as
for videos: a point is a latent with two channels and one pixel. Forecasts with noise reproduce both branches; a
forecast of the flow alone is deterministic and cannot. Prints one JSON line; writes <storage>/bifurcation.png and
.json.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from raypipe import cli, config
from raypipe.common import terminal
from raypipe.common.files import atomic_path, write_json
from raypipe.config import Component, Experiment
from raypipe.data.batches import TrainBatch
from raypipe.models.components import Denoiser, Diffusion, Flow
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.rollout import rollout
from raypipe.training.component import component_schedule
from raypipe.training.component_task import ComponentTask
from raypipe.training.loop import Progress, fit, make_optimizer

POINTS, STRAIGHT, LENGTH, TURN, EACH = 100, 45, 0.1, math.radians(30), 50
"""Points of a trajectory, steps before the turn, length of a step, angle of the turn, trajectories per branch."""
SAMPLES = 200
"""Number of forecasts, each an ensemble member."""
RECIPE = {
    "model.num_input_frames": 1,
    "train.noise_std": 0.05,
    "train.steps": 5000,
    "train.batch_size": 256,
    "train.learning_rate": 3e-3,
    "train.warmup_steps": 250,
}
COMPONENTS: dict[Component, str | None] = {"flow": "mse", "denoiser": None, "diffusion": "nll"}
"""Components and their losses."""


def trajectories() -> Tensor:
    """The data, [100 trajectories, 100 points, 2]: 50 that turn left, then 50 that turn right."""
    angles = torch.zeros(2, POINTS - 1)
    angles[:, STRAIGHT:] = torch.tensor([[TURN], [-TURN]])
    steps = LENGTH * torch.stack([angles.cos(), angles.sin()], -1)
    points = torch.cat([torch.zeros(2, 1, 2), steps.cumsum(1)], 1)
    return points.repeat_interleave(EACH, 0)


class Mlp(nn.Module):
    """Replaces the network of a component: state [b, 2, 1, 1] and time u [b] -> [b, 2, 1, 1]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        time = x.new_zeros(len(x)) if u is None else u
        out: Tensor = self.layers(torch.cat([x.flatten(1), time[:, None]], 1))
        return out.view_as(x)


@dataclass(frozen=True)
class Windows:
    """Batches of random pairs of successive points, which depend only on the seed and the training step."""

    points: Tensor
    batch_size: int
    seed: int

    def batch(self, step: int) -> TrainBatch:
        """The batch of a training step; its data are [batch_size, 2 points, 2, 1, 1]."""
        rng = np.random.default_rng([self.seed, step])
        clips = torch.from_numpy(rng.integers(0, len(self.points), self.batch_size))
        starts = torch.from_numpy(rng.integers(0, self.points.shape[1] - 1, self.batch_size))
        pairs = torch.stack([self.points[clips, starts], self.points[clips, starts + 1]], 1)
        return TrainBatch(pairs[..., None, None], clips, self.batch_size, 0, step)


def train(component: Component, seed: int, flow: nn.Module | None) -> nn.Module:
    """Train a component with the task, loop and schedule that are used for videos. flow: needed by a diffusion."""
    experiment: Experiment = config.replace(
        config.Experiment(),
        **{**RECIPE, "train.component": component, "train.loss": COMPONENTS[component], "train.random_seed": seed},
    )
    torch.manual_seed(seed)
    module = {"flow": Flow, "denoiser": Denoiser, "diffusion": Diffusion}[component](Mlp())
    task = ComponentTask(module, experiment, flow=flow)
    windows = Windows(trajectories(), experiment.train.batch_size, seed)
    schedule = component_schedule(experiment.train)
    with terminal.progress_bar(f"seed {seed} {component}", schedule.steps, "step", leave=False) as bar:

        def report(progress: Progress) -> None:
            bar.update(progress.step - bar.n)

        fit(task, windows.batch, schedule, report, optimizer=make_optimizer(module, schedule), every=100)
    return module.eval().requires_grad_(False)


@dataclass(frozen=True)
class Outcome:
    """Fractions of samples. left: on the left branch. near: that end close to an end of the data, see `judge`."""

    left: float
    near: float


def judge(ends: Tensor) -> Outcome:
    """Classify end points, [n, 2]. Near: at most a tenth of the path length after the turn from an end of the data."""
    true = trajectories()[[0, -1], -1]
    distance = (ends[:, None] - true).norm(dim=-1)
    allowed = 0.1 * LENGTH * (POINTS - 1 - STRAIGHT)
    return Outcome(
        left=(ends[:, 1] > 0).float().mean().item(), near=(distance.amin(1) <= allowed).float().mean().item()
    )


def sample(dynamics: Dynamics, seed: int) -> Tensor:
    """Forecast all further points from the first one: [200 members, 99 points, 2]."""
    start = trajectories()[:1, :1, :, None, None]
    return rollout(dynamics, start, POINTS - 1, steps=2, members=SAMPLES, seed=seed)[0, ..., 0, 0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.Parser(
        prog="bifurcation.py", description="Train the components as small MLPs on trajectories that turn left or right."
    )
    parser.add_argument("--seeds", type=cli.positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--storage", metavar="DIR", help="output folder (default: $RAYPIPE_STORAGE or ~/raypipe)")
    args = parser.parse_args(argv)
    path = cli.storage_root(args) / "bifurcation.json"
    torch.set_num_threads(1)
    outcomes, alone = [], []
    for seed in range(args.seeds):
        flow = train("flow", seed, None)
        full = Dynamics(flow, train("denoiser", seed, None), train("diffusion", seed, flow))
        samples = sample(full, seed)
        outcomes.append(judge(samples[:, -1]))
        alone.append(judge(sample(Dynamics(flow), seed)[:, -1]))
        if seed == 0:
            draw(samples, full, path.with_suffix(".png"))
    result = {
        "name": "bifurcation",
        "seeds": args.seeds,
        "samples": SAMPLES,
        "left": [outcome.left for outcome in outcomes],
        "near": [outcome.near for outcome in outcomes],
        "flow_alone_left": [outcome.left for outcome in alone],
        "flow_alone_near": [outcome.near for outcome in alone],
    }
    write_json(path, result)
    terminal.say(json.dumps(result))
    terminal.say(f"written  {path} and {path.with_suffix('.png')}")
    return 0


def draw(samples: Tensor, dynamics: Dynamics, path: Path) -> None:
    """Plot samples and data on the magnitude of g (gray) and the field of f (arrows), both at u = 0."""
    data = trajectories()
    xs, ys = torch.linspace(-0.5, 10, 120), torch.linspace(-3.4, 3.4, 80)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2, 1, 1)
    zero = torch.zeros(len(grid))
    assert dynamics.diffusion is not None
    size = dynamics.diffusion(grid, zero).norm(dim=1).view(len(ys), len(xs))
    arrows = dynamics.flow(grid, zero)[..., 0, 0].view(len(ys), len(xs), 2)[::5, ::5]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(xs, ys, size.log10(), cmap="Greys", vmin=-3, vmax=0, rasterized=True)
    axes.quiver(xs[::5], ys[::5], arrows[..., 0], arrows[..., 1], color="#8a8a8a", width=0.0015, scale=6)
    axes.plot(samples[:, :, 0].T, samples[:, :, 1].T, color="#2a6fbb", linewidth=0.5, alpha=0.35)
    axes.plot(data[[0, -1], :, 0].T, data[[0, -1], :, 1].T, color="#d1495b", linewidth=1.5, linestyle="--")
    axes.plot([], [], color="#2a6fbb", label=f"{len(samples)} samples")
    axes.plot([], [], color="#d1495b", linestyle="--", label="data")
    axes.legend(loc="upper left", frameon=True)
    axes.set(xlabel="x", ylabel="y", xlim=(-0.5, 10), ylim=(-3.4, 3.4), aspect="equal")
    figure.colorbar(mesh, label="magnitude of g (log10)", shrink=0.8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "bifurcation.py"))
