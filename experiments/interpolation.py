"""PSNR of in-between frames, which training never sees: `python experiments/interpolation.py [--seeds 3]`.

Trains a flow and a diffusion, or with --joint a joint network that sees the noise, on every fifth frame of longer demo
clips, predicts the four frames between the last known frame and the next one, and compares them with the true ones.
Baselines: linear interpolation between the known and the predicted frame, of pixels and of latents, and between the
known and the true next frame, which uses future data. Prints one JSON line; writes <storage>/interpolation.json and
.png.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raypipe import checkpoint, cli, config
from raypipe.common import terminal
from raypipe.common.device import choose_device
from raypipe.common.files import atomic_path, write_json
from raypipe.config import Component, Experiment
from raypipe.data.frames import to_float, to_uint8
from raypipe.distributed.connection import start_ray
from raypipe.distributed.jobs import ComponentJob, run_settings
from raypipe.distributed.prepare import prepare
from raypipe.distributed.trainer import train_jobs
from raypipe.forecast.film import strip
from raypipe.forecast.windows import choose_windows
from raypipe.metrics.frames import psnr
from raypipe.models.components import Joint
from raypipe.sde.dynamics import Dynamics
from raypipe.sde.rollout import rollout
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels, Workspace

STRIDE = 5
"""Video frames per frame interval."""
RECIPE = {
    "name": "interpolation",
    "dataset.frame_stride": STRIDE,
    "demo.clip_frames": 48,
    "evaluation.horizon": 4,
    "train.noise_std": 0.03,
    "train.steps": 1000,
}
STEPS = 2
"""Integration steps per frame interval."""
JOINT = {"train.component": "joint", "model.backbone": "conv", "model.depth": 2, "evaluation.steps": [STEPS]}
BLEND = "its ends blended as frames"
"""Baseline of the reported gains: linear interpolation between the known frame and the one that the flow predicts."""


@dataclass(frozen=True)
class Windows:
    """given: [n, K, 3, H, W], known frames, STRIDE apart. after: [n, STRIDE, 3, H, W], frames of the next interval."""

    given: Tensor
    after: Tensor


def test_windows(experiment: Experiment, data: ExperimentData) -> Windows:
    """Read fixed windows of the test split, with all frames of the interval to predict."""
    shards, known = data.frames("test"), experiment.model.num_input_frames
    span = known * STRIDE + 1
    clips, starts = choose_windows(shards.lengths, span, experiment.evaluation.test_windows, experiment.evaluation.seed)
    pairs = zip(clips, starts, strict=True)
    frames = to_float(torch.from_numpy(np.stack([shards.frames(c, slice(s, s + span)) for c, s in pairs])))
    last = (known - 1) * STRIDE
    return Windows(frames[:, : last + 1 : STRIDE], frames[:, last + 1 :])


def train_joint(experiment: Experiment, workspace: Workspace, seed: int) -> Dynamics:
    """Train a joint network."""
    job = ComponentJob(
        config.replace(experiment, **JOINT, **{"train.random_seed": seed}), workspace, f"seed{seed}", ParentModels()
    )
    train_jobs([job], run_settings(experiment, workspace, f"joint-seed{seed}"))
    module = checkpoint.load_component(job.folder).to(choose_device())
    assert isinstance(module, Joint)
    return module.dynamics()


def train_seed(experiment: Experiment, workspace: Workspace, seed: int) -> Dynamics:
    """Train a flow and a diffusion on its residual, and combine them."""
    choices: list[tuple[Component, str]] = [("flow", "mse"), ("diffusion", "nll")]
    parents = ParentModels()
    for component, loss in choices:
        values = {"train.component": component, "train.loss": loss, "train.random_seed": seed}
        job = ComponentJob(config.replace(experiment, **values), workspace, f"seed{seed}", parents)
        train_jobs([job], run_settings(experiment, workspace, f"{component}-seed{seed}"))
        parents = parents if component == "diffusion" else ParentModels(flow=job.folder)
    device = choose_device()
    flow, diffusion = (
        checkpoint.load_component(workspace.run(component, f"seed{seed}")).to(device) for component, _ in choices
    )
    return Dynamics(flow, diffusion=diffusion)


@torch.no_grad()
def compare(dynamics: Dynamics, windows: Windows, workspace: Workspace, seed: int) -> dict[str, Tensor]:
    """In-between frames, [n, STRIDE - 1, 3, H, W], by the name of the method."""
    device = choose_device()
    autoencoder = checkpoint.load_autoencoder(workspace.autoencoder).to(device)

    def decode(latents: Tensor) -> Tensor:
        parts = [autoencoder.decode(part.to(device)).cpu() for part in latents.flatten(0, 1).split(128)]
        return torch.cat(parts).view(*latents.shape[:2], *parts[0].shape[1:])

    parts = [autoencoder.encode(part.to(device)).cpu() for part in windows.given.flatten(0, 1).split(128)]
    context = torch.cat(parts).view(*windows.given.shape[:2], *parts[0].shape[1:])
    share = torch.arange(1, STRIDE).view(-1, 1, 1, 1) / STRIDE
    made = {}
    for name, driven in (("flow alone", replace(dynamics, beta=0.0)), ("one member", dynamics)):
        latents = rollout(
            driven, context, 1, steps=STEPS, members=1, seed=seed, interpolate=STRIDE, device=device
        )[:, 0]  # fmt: skip
        made[name] = decode(latents[:, :-1])
        if name == "flow alone":
            ends = context[:, -1:], latents[:, -1:]
            frames = windows.given[:, -1:], decode(latents[:, -1:])
            made["its ends blended as latents"] = decode((1 - share) * ends[0] + share * ends[1])
            made[BLEND] = (1 - share) * frames[0] + share * frames[1]
    made["true ends blended as frames"] = (1 - share) * windows.given[:, -1:] + share * windows.after[:, -1:]
    made["last frame repeated"] = windows.given[:, -1:].expand(-1, STRIDE - 1, -1, -1, -1)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser("interpolation.py", "Compare in-between frames with the true ones.")
    parser.add_argument("--seeds", type=cli.positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--joint", action="store_true", help="train a joint network in place of flow and diffusion")
    args, overrides = cli.parse(parser, argv)
    train = train_joint if args.joint else train_seed
    experiment, storage = cli.experiment(args, {**RECIPE, **overrides}), cli.storage_root(args)
    workspace = Workspace(storage, experiment.name)
    start_ray()
    data = prepare(experiment, workspace)
    windows = test_windows(experiment, data)
    each: dict[str, list[Tensor]] = {}
    for seed in range(args.seeds):
        made = compare(train(experiment, workspace, seed), windows, workspace, seed)
        for name, frames in made.items():
            each.setdefault(name, []).append(psnr(frames.clamp(-1, 1), windows.after[:, :-1]).mean(1))
        if seed == 0:
            save_picture(made, windows, storage / f"{experiment.name}.png")
    gains = {name: [v - b for v, b in zip(values, each[BLEND], strict=True)] for name, values in each.items()}
    result = {
        "name": "interpolation",
        "seeds": args.seeds,
        "windows": len(windows.after),
        "psnr": {name: [round(v.mean().item(), 3) for v in values] for name, values in each.items()},
        "gain_over_blend": {name: [round(v.mean().item(), 3) for v in values] for name, values in gains.items()},
        "gain_se": {name: [round(v.std().item() / len(v) ** 0.5, 3) for v in values] for name, values in gains.items()},
    }
    write_json(storage / f"{experiment.name}.json", result)
    rows = [
        [name, _text(result["psnr"][name]), _text(result["gain_over_blend"][name]), max(result["gain_se"][name])]
        for name in each
    ]
    terminal.say(terminal.table(rows, ["in-between frames", "psnr", f"over {BLEND}", "se over windows"]))
    terminal.say(json.dumps(result))
    terminal.say(f"written  {storage / experiment.name}.json and .png")
    return 0


def _text(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {spread:.3f}"


def save_picture(made: dict[str, Tensor], windows: Windows, path: Path, window: int = 2) -> None:
    """Save strips of the last known and the in-between frames: the truth, then each method in the order of `made`."""
    rows = [windows.after[window, :-1], *(frames[window] for frames in made.values())]
    strips = [
        strip(to_uint8(torch.cat([windows.given[window, -1:], row.clamp(-1, 1)])).numpy(), known=1) for row in rows
    ]
    with atomic_path(path) as temporary:
        Image.fromarray(np.concatenate(strips)).save(temporary, "PNG", optimize=True)


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "interpolation.py"))
