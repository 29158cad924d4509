"""Speed of training: `python experiments/benchmarks/training.py [--quick] [--only NAME] [--threads N]`.

Prints a JSON line for each comparison:

cache    a training step on cached latents, compared with one that encodes its frames (reference network for KTH, with
         the autoencoder f8_small)
trainer  training under TorchTrainer with one worker, including checkpoints, compared with the training loop alone;
         start-up is not counted
flops    floating-point operations per second of a training step, compared with those of a large matrix product, with
         torch's `@` (MKL) or our linear map (oneDNN), whichever is faster
profile  fractions of the time of a training step by kind of operation, from torch.profiler

Times are the best of several repeats, in which both sides alternate. Frames are random, as speed does not depend on
their content.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from raypipe import checkpoint, cli, config
from raypipe.common import terminal
from raypipe.data.latents import cache_latents, finish
from raypipe.data.shards import ShardWriter
from raypipe.distributed.connection import start_ray
from raypipe.distributed.jobs import ComponentJob
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.models.attention import linear
from raypipe.models.autoencoder import Autoencoder, build_network
from raypipe.training.component import ComponentTraining
from raypipe.training.loop import Progress
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels, Workspace

CLIPS, FRAMES = 4, 12
"""Number of clips, and of frames of each."""
CPU = torch.device("cpu")
REFERENCE = {
    "model.inner_dim": 768,
    "model.depth": 4,
    "model.mid_depth": 5,
    "model.num_heads": 8,
    "model.dropout": 0.05,
    "model.time_input": False,
    "train.ema": 0.0,
}
"""Settings of the reference network."""
GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "flash_attention", "aten::bmm", "softmax"),
    "optimizer, clipping, average": ("_fused_adamw", "_foreach", "linalg_vector_norm", "lerp"),
    "linear maps": ("conv", "mkldnn", "addmm", "aten::mm"),
    "norms, gelu, dropout": ("norm", "gelu", "dropout", "bernoulli"),
    "copies": ("copy", "contiguous", "clone", "aten::cat"),
}
"""Kinds of operations, and substrings of their names; the first match counts."""
Tick = Callable[[], None]
"""Advances the progress bar."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a training. fields: config fields. network, arguments: the autoencoder's type and sizes."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    network: str = "conv"
    arguments: Mapping[str, Any] = field(default_factory=dict)


DEMO = Shape("demo")
KTH = Shape("kth", REFERENCE, "vqgan", {"attention_levels": [2]})  # f8_small
CLEVRER = Shape("clevrer", {**REFERENCE, "dataset.image_size": 128})
TINY_NETWORK = {"ch": 32, "ch_mult": [1, 1, 1, 2], "num_embeddings": 16, "num_res_blocks": 1}
TINY = Shape("tiny", {"model.inner_dim": 16, "dataset.image_size": 32}, "vqgan", TINY_NETWORK)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the speed of training with baselines; prints JSON lines.")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to test the script; the numbers mean nothing"
    )
    parser.add_argument("--only", choices=PARTS, help="run only this comparison")
    parser.add_argument("--threads", type=cli.positive, default=1, metavar="N", help="torch threads (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in [args.only] if args.only else PARTS:
        with terminal.progress_bar(name, None, "measurement") as bar, tempfile.TemporaryDirectory() as folder:
            PARTS[name](Path(folder), args.quick, bar.update)


def cache(folder: Path, quick: bool, tick: Tick) -> None:
    """Print the line `cache`."""
    shape = TINY if quick else KTH
    trainings = {mode: training(prepare(folder / mode, shape, **{"latents.mode": mode})) for mode in ("cache", "off")}
    times = take_turns({mode: partial(one_step, t) for mode, t in trainings.items()}, 1 if quick else 3, tick)
    show(
        "cache",
        times["off"] / times["cache"],
        "the same step with encoding of its frames",
        at_least=3,
        shape=shape.name,
        parameters=parameters(trainings["cache"].module),
        seconds=times["cache"],
        baseline_seconds=times["off"],
    )


def trainer(folder: Path, quick: bool, tick: Tick) -> None:
    """Print the line `trainer`."""
    shape, steps = (TINY, 12) if quick else (DEMO, 1500)
    data = prepare(folder, shape, **{"train.steps": steps, "train.checkpoint_every": max(1, steps // 6)})
    start_ray()
    rates: dict[str, list[float]] = {"bare": [], "trainer": []}
    for repeat in range(1 if quick else 3):
        bare = training(data)
        every = max(1, steps // 6 // 5)  # the reporting interval of a job
        rates["bare"].append(rate(partial(bare.advance, steps, every=every), lambda progress: None))
        tick()
        timed = TimedJob(ComponentJob(data.experiment, data.workspace, f"timed-{repeat}"), folder / "rate")
        train_jobs([cast(Any, timed)], Settings(folder / "ray", f"timed-{repeat}", show_progress=False))
        rates["trainer"].append(float(timed.result.read_text()))
        tick()
    best = {name: max(found) for name, found in rates.items()}
    show(
        "trainer",
        best["trainer"] / best["bare"],
        "the same loop without Ray, reports and checkpoints",
        at_least=0.97,
        shape=shape.name,
        steps=steps,
        steps_per_second=best["trainer"],
        baseline_steps_per_second=best["bare"],
    )


def flops(folder: Path, quick: bool, tick: Tick) -> None:
    """Print the lines `flops`, one per shape."""
    size = 256 if quick else 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    image = a.view(-1, 8, 8, size)  # oneDNN is twice as fast on a square of pixels as on a row
    for shape in (TINY,) if quick else (DEMO, KTH, CLEVRER):
        trained = training(prepare(folder / shape.name, shape))
        with FlopCounterMode(display=False) as counter:
            one_step(trained)
        sides: dict[str, Callable[[], Any]] = {
            "step": partial(one_step, trained),
            "matmul": partial(torch.matmul, a, b),
            "linear": partial(linear, image, b, None),
        }
        times = take_turns(sides, 1 if quick else 3, tick)
        achieved, bound = counter.get_total_flops() / times["step"], 2 * size**3 / min(times["matmul"], times["linear"])
        show(
            "flops",
            achieved / bound,
            f"a product of two {size} x {size} matrices",
            shape=shape.name,
            parameters=parameters(trained.module),
            flops_per_step=counter.get_total_flops(),
            seconds=times["step"],
            gflops=achieved / 1e9,
            baseline_gflops=bound / 1e9,
        )


def profiled(folder: Path, quick: bool, tick: Tick) -> None:
    """Print the lines `profile`, one per shape."""
    for shape in (TINY,) if quick else (DEMO, KTH, CLEVRER):
        trained = training(prepare(folder / shape.name, shape))
        one_step(trained)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            for _ in range(20 if shape is DEMO else 1):
                one_step(trained)
        spent = dict.fromkeys([*GROUPS, "other"], 0.0)
        for event in found.key_averages():
            name = next((group for group, parts in GROUPS.items() if any(p in event.key for p in parts)), "other")
            spent[name] += event.self_cpu_time_total
        total = sum(spent.values())
        shares = {name: round(value / total, 3) for name, value in spent.items()}
        show("profile", shares["linear maps"], "the whole step; ratio of linear maps", shape=shape.name, shares=shares)
        tick()


PARTS: Mapping[str, Callable[[Path, bool, Tick], None]] = {
    "cache": cache,
    "trainer": trainer,
    "flops": flops,
    "profile": profiled,
}


def prepare(folder: Path, shape: Shape, **fields: Any) -> ExperimentData:
    """Write shards of random frames, an untrained autoencoder and, for latents.mode cache, the latent cache."""
    settings = {"dataset.root": str(folder / "shards"), **shape.fields, **fields}
    experiment = config.replace(config.Experiment(), **settings)
    data = ExperimentData(experiment, Workspace(folder / "storage", shape.name))
    generator, size = np.random.default_rng(0), experiment.dataset.image_size
    with ShardWriter(folder / "shards" / "train") as writer:
        for i in range(CLIPS):
            writer.add(str(i), generator.integers(0, 256, (FRAMES, size, size, 3), np.uint8))
    torch.manual_seed(0)
    autoencoder = Autoencoder(build_network(shape.network, shape.arguments)).eval()
    checkpoint.save_autoencoder(data.workspace.autoencoder, autoencoder)
    if experiment.latents.mode == "cache":
        frames, place, key = data.frames("train"), data.cache("train"), data.cache_key("train")

        @torch.no_grad()
        def encode(some: np.ndarray) -> np.ndarray:
            latents = autoencoder.encode(torch.from_numpy(some).movedim(-1, 1) / 127.5 - 1)
            return np.asarray(latents.numpy())

        cache_latents(frames, place, encode, 16, key)
        finish(frames, place, key)
    return data


def training(data: ExperimentData) -> ComponentTraining:
    return ComponentTraining(data.experiment, data, ParentModels(), device=CPU)


def one_step(trained: ComponentTraining) -> None:
    trained.advance(trained.step + 1, lambda progress: None)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def take_turns(sides: Mapping[str, Callable[[], Any]], repeats: int, tick: Tick) -> dict[str, float]:
    """The shortest time of each side in seconds. The sides alternate; the first round is a warm-up."""
    best = dict.fromkeys(sides, float("inf"))
    for repeat in range(repeats + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if repeat:
                best[name] = min(best[name], time.perf_counter() - began)
            tick()
    return best


def rate(advance: Callable[[Callable[[Progress], None]], None], report: Callable[[Progress], None]) -> float:
    """Steps per second from the first to the last report."""
    seen: list[tuple[int, float]] = []

    def note(progress: Progress) -> None:
        seen.append((progress.step, time.perf_counter()))
        report(progress)

    advance(note)
    return (seen[-1][0] - seen[0][0]) / (time.perf_counter() - seen[0][1])


@dataclass(frozen=True)
class TimedJob:
    """A `ComponentJob` whose training writes its steps per second to the file `result`."""

    job: ComponentJob
    result: Path

    @property
    def folder(self) -> Path:
        return self.job.folder

    @property
    def steps(self) -> int:
        return self.job.steps

    @property
    def checkpoint_every(self) -> int:
        return self.job.checkpoint_every

    def build(self, *args: Any) -> "TimedTraining":
        return TimedTraining(self.job.build(*args), self.result)


class TimedTraining:
    """Wraps the training `inner`, and writes its steps per second to the file `result`."""

    def __init__(self, inner: Any, result: Path) -> None:
        self._inner, self._result = inner, result
        self.save, self.restore = inner.save, inner.restore

    @property
    def step(self) -> int:
        return int(self._inner.step)

    def advance(self, stop: int, report: Any, every: int) -> None:
        self._result.write_text(str(rate(partial(self._inner.advance, stop, every=every), report)))


def show(name: str, ratio: float, against: str, **more: Any) -> None:
    rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in more.items()}
    line = {"name": name, "ratio": round(ratio, 3), "against": against, **rounded, "threads": torch.get_num_threads()}
    terminal.say(json.dumps(line))


if __name__ == "__main__":
    main()
