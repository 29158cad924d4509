"""What each part of the joint network is worth: `python experiments/ablations.py [--seeds 3] [--seconds 100]`.

Trains variants on the demo's latents, all for the same CPU seconds on one thread and with several seeds, and scores
their forecasts of the test clips: in latents, and decoded. Differences from the first variant are paired by seed. The
numbers of steps follow from the time of a step, which is measured first, for all variants in turns. Results are
appended to <storage>/<name>/ablations.jsonl; if interrupted, the same command continues.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import torch
from noise_models import FieldNoise, MatchingTask, field_task, sample_matching
from torch import Tensor, nn

from raypipe import checkpoint, cli, config
from raypipe.common import terminal
from raypipe.config import Component, Experiment
from raypipe.data.batches import WindowBatches
from raypipe.data.frames import to_float
from raypipe.data.windows import Sampler, WindowIndex
from raypipe.distributed.connection import start_ray
from raypipe.distributed.prepare import prepare
from raypipe.forecast import scoring
from raypipe.forecast.decoding import decode
from raypipe.forecast.windows import Forecasts, forecast_windows
from raypipe.metrics import ensemble
from raypipe.metrics.pixels import pixels_of, score_frames
from raypipe.models.components import Joint, build_component
from raypipe.sde.dynamics import Dynamics
from raypipe.training.component import component_schedule, movement_scale
from raypipe.training.component_task import component_task
from raypipe.training.forecast_task import ForecastTask
from raypipe.training.loop import Task
from raypipe.training.network import NetworkTraining
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

RECIPE: dict[str, Any] = {
    "name": "ablations",
    "train.component": "joint",
    "model.backbone": "conv",
    "model.depth": 2,
    "train.noise_std": 0.03,
    "evaluation.steps": [1],
}
METRICS = ("crps_ratio", "energy_ratio_pixels", "crps_ratio_pixels", "bodies_kept", "spread_skill", "psnr")
TIMED_STEPS, TIMED_TURNS = 4, 5


@dataclass(frozen=True)
class Variant:
    """One variant. changes: of RECIPE. kind: how it is built. calls: for flow matching, steps a frame to score.

    share: of the CPU seconds that each of its trainings gets.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "joint"
    calls: tuple[int, ...] = ()
    share: float = 1.0


ADDITIVE = {"sde.noise": "additive"}
VELOCITY = {**ADDITIVE, "train.score_share": 0.0}
VARIANTS = (
    Variant("as chosen"),
    Variant("transformer", {"model.backbone": "transformer", "model.depth": 1}),
    Variant("additive noise", ADDITIVE),
    Variant("additive noise, velocity alone", VELOCITY),
    Variant("the same, f and g apart", VELOCITY, "apart", share=0.5),
    Variant("apart, g trained on scores", {**ADDITIVE, "train.loss": "crps"}, "apart", share=0.5),
    Variant("additive noise, 4 learned fields", kind="fields"),
    Variant("crps alone", {"train.loss": "crps"}),
    Variant("energy score alone", {"train.loss": "energy"}),
    Variant("forecasts of 2 frames", {"train.forecast_frames": 2}),
    Variant("2 steps a frame", {"evaluation.steps": [2]}),
    Variant("s = 0", {"train.noise_std": 0.0}),
    Variant("two trainings of half the time", kind="two", share=0.5),
    Variant("flow matching", kind="matching", calls=(1, 2, 4, 10, 25)),
)
FIELDS = 4


def experiment_of(variant: Variant, experiment: Experiment, seed: int) -> Experiment:
    """The experiment of a variant and a seed."""
    return config.replace(experiment, **variant.changes, **{"train.random_seed": seed})


Maker = Callable[[Experiment, ExperimentData], tuple[nn.Module, Task]]
"""Makes a network and its loss."""


def training(experiment: Experiment, data: ExperimentData, make: Maker) -> NetworkTraining:
    """The training of one network, before its first step."""
    train = experiment.train
    torch.manual_seed(train.random_seed)
    module, task = make(experiment, data)
    shards = data.training_shards()
    frames = train.forecast_frames if isinstance(task, ForecastTask) else 1
    index = WindowIndex(shards.lengths, experiment.model.num_input_frames + frames)
    sampler = Sampler(len(index), train.batch_size, train.random_seed, borders=index.borders(shards.shard_of))
    batches = WindowBatches(shards, index.window, 1, sampler)
    return NetworkTraining(module, task, batches, component_schedule(train), ema=train.ema)


def joint(experiment: Experiment, data: ExperimentData) -> tuple[nn.Module, Task]:
    """The joint network of the config."""
    module = build_component("joint", experiment.model, data.channels, experiment.sde.noise)
    assert isinstance(module, Joint)
    scale = None
    if module.interpolates:
        scale = module.scale.copy_(movement_scale(data.latents("train"), experiment.dataset.frame_stride))
    return module, component_task(module, experiment, noise_scale=scale)


def fields(experiment: Experiment, data: ExperimentData) -> tuple[nn.Module, Task]:
    """A joint network with learned noise fields."""
    height, width = data.latents("val").frame_shape[-2:]
    seen = config.replace(experiment, **{"sde.noise": "input"})
    module = FieldNoise(seen, data.channels, (height, width), FIELDS)
    return module, field_task(module, seen)


def matching(experiment: Experiment, data: ExperimentData) -> tuple[nn.Module, Task]:
    """Flow matching with the network of the config."""
    module = build_component("joint", experiment.model, data.channels, "input")
    return module, MatchingTask(module, experiment, step_scale(data))


def apart(experiment: Experiment, data: ExperimentData, flow: nn.Module | None = None) -> tuple[nn.Module, Task]:
    """A flow (mse), or, given the flow, the diffusion of its residual (nll, or crps if that is the variant's loss)."""
    component: Component = "flow" if flow is None else "diffusion"
    loss = "mse" if flow is None else experiment.train.loss or "nll"
    settings = config.replace(experiment, **{"train.component": component, "train.loss": loss})
    module = build_component(component, experiment.model, data.channels)
    return module, component_task(module, settings, flow=flow)


MAKERS: Mapping[str, Maker] = {"joint": joint, "two": joint, "fields": fields, "matching": matching, "apart": apart}


def step_scale(data: ExperimentData) -> Tensor:
    """Standard deviation of the differences of successive training latents, per channel, [C, 1, 1]."""
    clip = torch.cat([torch.as_tensor(data.latents("train").clip(i)).diff(dim=0) for i in range(64)])
    return clip.float().std((0, 2, 3))[:, None, None]


def trained(variant: Variant, experiment: Experiment, data: ExperimentData) -> list[nn.Module]:
    """The networks of a variant, trained to their end."""
    networks: list[nn.Module] = []
    for number in range(round(1 / variant.share)):
        seeded = config.replace(experiment, **{"train.random_seed": experiment.train.random_seed + 1000 * number})
        make = MAKERS[variant.kind]
        if variant.kind == "apart" and networks:
            make = partial(apart, flow=networks[0])
        run = training(seeded, data, make)
        run.advance(seeded.train.steps, lambda _: None, every=seeded.train.steps)
        networks.append(run.model.eval().requires_grad_(False))
    return networks


def forecasts_of(
    variant: Variant, networks: Sequence[nn.Module], experiment: Experiment, data: ExperimentData, test: Forecasts
) -> dict[int, Tensor]:
    """Forecasts of the test windows, [n, M, H, C, h, w], by the number of network calls a frame."""
    evaluation = experiment.evaluation
    if variant.kind == "matching":
        sample = partial(sample_matching, networks[0], step_scale(data), test.context, evaluation.horizon)
        return {n: sample(members=evaluation.members, calls=n, seed=evaluation.seed) for n in variant.calls}
    fitting = forecast_windows(data.latents("train"), experiment, evaluation.fit_windows, evaluation.seed + 1)

    def make(beta: float) -> list[Dynamics]:
        if variant.kind == "apart":
            return [Dynamics(networks[0], diffusion=networks[1], beta=beta)]
        return [network.dynamics(beta=beta) for network in networks if isinstance(network, Joint)]

    steps = evaluation.steps[0]
    beta = scoring.fit_magnitude(make, evaluation.betas, fitting, evaluation, steps).value
    return {2 if variant.kind == "apart" else steps: scoring.forecast(make(beta), test, evaluation, steps)}


def scores(made: Tensor, test: Forecasts, data: ExperimentData) -> dict[str, float]:
    """Scores in latents and of decoded frames."""
    autoencoder = checkpoint.load_autoencoder(data.workspace.autoencoder)
    shards, given = data.frames("test"), test.context.shape[1]
    windows = []
    for n, (clip, start) in enumerate(zip(test.clips, test.starts, strict=True)):
        frames = to_float(torch.from_numpy(shards.frames(clip, slice(start, start + given + made.shape[2]))))
        windows.append(score_frames(decode(autoencoder, made[n]), frames[given:], frames[given - 1]))
    pixels, score = pixels_of(windows, bodies=True), ensemble.score(made, test.truth, test.last)
    assert pixels.bodies_kept is not None
    return {
        "crps_ratio": score.ratio.value,
        "energy_ratio_pixels": pixels.energy_ratio,
        "crps_ratio_pixels": pixels.crps_ratio,
        "bodies_kept": pixels.bodies_kept[-1],
        "spread_skill": score.spread_skill,
        "psnr": pixels.psnr,
    }


def run(variant: Variant, experiment: Experiment, data: ExperimentData) -> list[dict[str, Any]]:
    """Train and score a variant with one seed: one row for each number of calls a frame."""
    torch.set_num_threads(1)
    began = time.process_time()
    networks = trained(variant, experiment, data)
    seconds = time.process_time() - began
    evaluation = experiment.evaluation
    test = forecast_windows(data.latents("test"), experiment, evaluation.test_windows, evaluation.seed)
    rows = []
    for calls, made in forecasts_of(variant, networks, experiment, data, test).items():
        row = {"variant": variant.name, "seed": experiment.train.random_seed, "calls": calls}
        rows.append(row | {"steps": experiment.train.steps, "seconds": seconds} | scores(made, test, data))
    return rows


def seconds_per_step(experiment: Experiment, data: ExperimentData) -> dict[str, float]:
    """CPU seconds of a training step of each variant: the least of several measurements, taken in turns."""
    torch.set_num_threads(1)
    phases = {variant.name: phases_of(variant, experiment_of(variant, experiment, 0), data) for variant in VARIANTS}
    least = {name: [float("inf")] * len(of) for name, of in phases.items()}
    for _ in range(TIMED_TURNS):
        for name, of in phases.items():
            for number, (_, run) in enumerate(of):
                began = time.process_time()
                run.advance(run.step + TIMED_STEPS, lambda _: None, every=TIMED_STEPS)
                least[name][number] = min(least[name][number], (time.process_time() - began) / TIMED_STEPS)
    return {
        name: sum(share * seconds for (share, _), seconds in zip(of, least[name], strict=True))
        for name, of in phases.items()
    }


def phases_of(variant: Variant, experiment: Experiment, data: ExperimentData) -> list[tuple[float, NetworkTraining]]:
    """For each phase of a variant's training, its share of the steps, and a training that is in it."""
    settings = config.replace(experiment, **{"train.steps": 1000})
    shares, make = [(1.0, MAKERS[variant.kind])], MAKERS[variant.kind]
    if variant.kind == "apart":
        flow = make(settings, data)[0].requires_grad_(False)
        shares = [(0.5, make), (0.5, partial(apart, flow=flow))]
    phases = []
    for share, make in shares:
        scored = settings.train.score_share if isinstance(make(settings, data)[1], ForecastTask) else 0.0
        for part, step in ((1 - scored, 0), (scored, 1000 - TIMED_STEPS * TIMED_TURNS)):
            if part > 0:
                run = training(settings, data, make)
                run.step = step
                phases.append((share * part, run))
    return phases


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.experiment_parser("ablations.py", "Compare variants of the joint network at equal training time.")
    parser.add_argument("--seeds", type=cli.positive, default=3, metavar="N", help="seeds 0 to N - 1 (default: 3)")
    parser.add_argument("--seconds", type=cli.positive, default=100, metavar="S", help="CPU seconds a training")
    args, overrides = cli.parse(parser, argv)
    experiment = cli.experiment(args, {**RECIPE, **overrides})
    workspace = Workspace(cli.storage_root(args), experiment.name)
    start_ray()
    data = prepare(experiment, workspace)
    path = workspace.folder / "ablations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    timed = workspace.folder / "seconds_per_step.json"
    if not timed.exists():
        measure = ray.remote(num_cpus=1)(seconds_per_step)
        timed.write_text(json.dumps(ray.get(measure.remote(experiment, data)), indent=1))
    costs = json.loads(timed.read_text())
    task, pending = ray.remote(num_cpus=1)(run), []
    for seed in range(args.seeds):
        for variant in VARIANTS:
            if not any(row["variant"] == variant.name and row["seed"] == seed for row in rows):
                steps = max(20, round(variant.share * args.seconds / costs[variant.name]))
                seeded = config.replace(
                    experiment_of(variant, experiment, seed),
                    **{"train.steps": steps, "train.warmup_steps": steps // 20},
                )
                pending.append(task.remote(variant, seeded, data))
    with terminal.progress_bar("ablations", len(pending), "training") as bar:
        while pending:
            (done,), pending = ray.wait(pending)
            found = ray.get(done)
            rows += found
            with path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
            bar.update()
    show(rows, args.seeds)
    terminal.say(f"\nwritten  {path}")
    return 0


def show(rows: Sequence[Mapping[str, Any]], seeds: int) -> None:
    """Print the scores of each variant, and the paired differences of crps_ratio and energy from the first."""

    def of(name: str, calls: int, metric: str) -> list[float]:
        by_seed = {row["seed"]: row[metric] for row in rows if row["variant"] == name and row["calls"] == calls}
        return [by_seed[seed] for seed in range(seeds)]

    first, body = (VARIANTS[0].name, 1), []
    for variant in VARIANTS:
        for calls in sorted({row["calls"] for row in rows if row["variant"] == variant.name}):
            values = [text(of(variant.name, calls, metric)) for metric in METRICS]
            gaps = [
                text([a - b for a, b in zip(of(variant.name, calls, metric), of(*first, metric), strict=True)])
                for metric in METRICS[:2]
            ]
            body.append([variant.name, calls, *values, *gaps])
    header = ["variant", "calls", *METRICS, *(f"{metric} - first" for metric in METRICS[:2])]
    terminal.say(terminal.table(body, header))


def text(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {spread:.3f}"


if __name__ == "__main__":
    raise SystemExit(cli.run(main, "ablations.py"))
