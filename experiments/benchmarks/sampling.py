"""Speed and quality of samplers for a trained model: `python experiments/benchmarks/sampling.py [--model DIR]`.

Prints JSON lines, all for the same networks, validation windows and number of members:

- our sampler with 2 steps per frame, compared with that of the reference code, torchsde's adaptive Milstein (rtol
  1e-10, atol 1e-2): `ratio` of predicted frames per second, without decoding, and the quality of both. The two
  alternate, with equal batches, and the fastest run of each counts;
- our sampler with other batch sizes;
- our sampler with compiled and with eager networks; the first forecast, which compiles them, is timed separately;
- each solver with 1, 2, 4, ... steps per frame: quality and network evaluations per frame.

crps_ratio is computed in latent space, psnr (dB) on decoded frames of single members.
"""

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raypipe import cli
from raypipe.common import terminal
from raypipe.common.device import autocast, choose_device
from raypipe.config import ConfigError
from raypipe.data.frames import to_float
from raypipe.forecast.decoding import decode
from raypipe.forecast.manifest import MANIFEST, find_best
from raypipe.forecast.predictor import Predictor, load_predictor
from raypipe.forecast.windows import Forecasts, forecast_windows, true_frames
from raypipe.metrics import ensemble, frames
from raypipe.metrics.ensemble import Score
from raypipe.sde.batching import in_batches
from raypipe.sde.compiled import CompiledEvaluate
from raypipe.sde.dynamics import Dynamics, Evaluate, Interval, evaluate
from raypipe.sde.rollout import rollout
from raypipe.sde.solvers import SOLVERS
from raypipe.workspace.claims import latest
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace

PROG = "sampling.py"
RTOL, ATOL = 1e-10, 1e-2
FIRST_STEP = 0.1
"""First step size of torchsde. With its default of 1e-3, it needs three times as many evaluations."""
BATCHES = (16, 32, 64, 128, 256)
"""Batch sizes, in forecasts."""
CURVE = (1, 2, 4, 8, 16, 32)
"""Integration steps per frame."""
REFERENCE = "torchsde adaptive milstein"


@dataclass(frozen=True)
class Trial:
    """A model, windows to forecast, and settings. batch_size: forecasts at once; None: chosen by `in_batches`."""

    predictor: Predictor
    data: ExperimentData
    windows: Forecasts
    members: int
    batch_size: int | None
    seed: int
    evaluate: Evaluate = evaluate

    @property
    def dynamics(self) -> Dynamics:
        return replace(self.predictor.dynamics()[0], evaluate=self.evaluate)

    @property
    def frames(self) -> int:
        """Number of frames that a forecast of all windows predicts."""
        return self.members * self.windows.truth.shape[0] * self.windows.truth.shape[1]

    def first(self, count: int) -> "Trial":
        """The same with only the first `count` windows."""
        w = self.windows
        return replace(self, windows=Forecasts(w.context[:count], w.truth[:count], w.clips[:count], w.starts[:count]))


class IntervalSde:
    """Adapter of a frame interval to torchsde's interface, with a flattened state and diagonal noise.

    As in the reference code, the networks run without gradients, so the derivative in the Milstein scheme is 0.
    """

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, interval: Interval, shape: Sequence[int]) -> None:
        self._interval = interval
        self._shape = (-1, *shape)
        self.drifts = 0

    @torch.no_grad()
    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.drifts += 1
        return self._interval.drift(y.view(self._shape), float(t)).flatten(1)

    @torch.no_grad()
    def g(self, t: Tensor, y: Tensor) -> Tensor:
        return self._interval.noise(y.view(self._shape), float(t))(1.0).flatten(1)


@dataclass
class Drifts:
    """Counter of drift evaluations and of frame intervals, over all batches."""

    count: int = 0
    intervals: int = 0

    @property
    def per_frame(self) -> float:
        return self.count / self.intervals


def sample_published(trial: Trial, drifts: Drifts) -> Tensor:
    """Forecast with the reference code's sampler: [n, members, H, C, h, w]. drifts: is increased."""
    import torchsde  # type: ignore[import-untyped,unused-ignore]

    given = trial.windows.context.repeat_interleave(trial.members, dim=0)
    horizon, device = trial.windows.truth.shape[1], trial.predictor.device

    def run(rows: slice) -> Tensor:
        known = list(given[rows].to(device).unbind(1))
        channels = known[0].shape[1]
        out = []
        for frame in range(horizon):
            state = torch.cat(known, dim=1)
            sde = IntervalSde(trial.dynamics.interval(state), state.shape[1:])
            start, times = state.flatten(1), torch.tensor([0.0, 1.0], device=device)
            entropy = hash((trial.seed, rows.start, frame)) % 2**31
            noise = torchsde.BrownianInterval(
                0.0, 1.0, size=tuple(start.shape), entropy=entropy, device=device, dtype=start.dtype
            )
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")  # torchsde warns when it reaches the minimum step size
                end = torchsde.sdeint(
                    sde, start, times, bm=noise, method="milstein", dt=FIRST_STEP, adaptive=True, rtol=RTOL, atol=ATOL
                )[-1]
            drifts.count, drifts.intervals = drifts.count + sde.drifts, drifts.intervals + 1
            out.append(end.view_as(state)[:, -channels:])
            known = [*known[1:], out[-1]]
        return torch.stack(out, dim=1).cpu()

    with autocast(device):
        rolled = in_batches(run, len(given), trial.batch_size, device)
    return rolled.view(len(trial.windows.context), trial.members, *rolled.shape[1:])


def sample(trial: Trial, solver: str, steps: int) -> Tensor:
    """Forecast with our sampler: [n, members, H, C, h, w]. steps: integration steps per frame."""
    with autocast(trial.predictor.device):
        return rollout(
            trial.dynamics,
            trial.windows.context,
            trial.windows.truth.shape[1],
            steps=steps,
            members=trial.members,
            seed=trial.seed,
            solver=solver,
            batch_size=trial.batch_size,
            device=trial.predictor.device,
        )


def scored(trial: Trial, made: Tensor) -> Score:
    """The score of a forecast in latent space."""
    return ensemble.score(made, trial.windows.truth, trial.windows.last)


def psnr(trial: Trial, made: Tensor) -> float:
    """PSNR in dB of a forecast after decoding, averaged over windows, members and frames."""
    truth, _ = true_frames(trial.data, "val", trial.windows)
    total = [
        frames.psnr(decoded := decode(trial.predictor.autoencoder, forecasts), to_float(true).expand_as(decoded))
        for forecasts, true in zip(made, truth, strict=True)
    ]
    return float(torch.stack([x.mean() for x in total]).mean())


def versus(trial: Trial, timed: Trial, repeats: int) -> None:
    """Print speed and quality of both samplers, and the ratio of their speeds. timed: the windows for the speed."""
    drifts = Drifts()
    seconds: dict[str, list[float]] = {"theirs": [], "ours": []}
    with terminal.progress_bar("both samplers", repeats, "run") as bar:
        for _ in range(repeats):
            for name in seconds:
                began = time.perf_counter()
                sample_published(timed, Drifts()) if name == "theirs" else sample(timed, "euler_maruyama", 2)
                seconds[name].append(time.perf_counter() - began)
            bar.update()
    speed = {name: timed.frames / min(times) for name, times in seconds.items()}
    theirs, ours = sample_published(trial, drifts), sample(trial, "euler_maruyama", 2)
    reference, score = scored(trial, theirs), scored(trial, ours)
    gap = score.minus(reference)
    common = {"benchmark": "sampling", "members": trial.members, "windows": len(trial.windows.clips)}
    show(common, REFERENCE, speed["theirs"], reference, psnr=psnr(trial, theirs), drifts_per_frame=drifts.per_frame)
    show(
        common,
        "euler_maruyama",
        speed["ours"],
        score,
        steps=2,
        drifts_per_frame=2,
        psnr=psnr(trial, ours),
        ratio=speed["ours"] / speed["theirs"],
        against=REFERENCE,
        crps_difference=gap.value,
        crps_difference_se=gap.se,
    )


def batches(timed: Trial, repeats: int, sizes: Sequence[int]) -> None:
    """Print the speed of our sampler for each batch size; `ratio` is to that of the largest."""
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    with terminal.progress_bar("batch sizes", repeats * len(sizes), "run") as bar:
        for _ in range(repeats):
            for size in sizes:
                began = time.perf_counter()
                sample(replace(timed, batch_size=size), "euler_maruyama", 2)
                seconds[size].append(time.perf_counter() - began)
                bar.update()
    speed = {size: timed.frames / min(times) for size, times in seconds.items()}
    for size in sizes:
        line = {"batch_size": size, "frames_per_second": speed[size], "ratio": speed[size] / speed[max(sizes)]}
        say({"benchmark": "batches", **line, "against": f"batches of {max(sizes)}"})


def compiled(timed: Trial, repeats: int) -> None:
    """Print the speed of our sampler with compiled networks; `ratio` is to that with eager ones."""
    graph = replace(timed, evaluate=CompiledEvaluate())
    began = time.perf_counter()
    made = sample(graph, "euler_maruyama", 2)
    first = time.perf_counter() - began
    seconds: dict[str, list[float]] = {"eager": [], "compiled": []}
    with terminal.progress_bar("compiled and eager", repeats, "run") as bar:
        for _ in range(repeats):
            for name, trial in (("eager", timed), ("compiled", graph)):
                began = time.perf_counter()
                sample(trial, "euler_maruyama", 2)
                seconds[name].append(time.perf_counter() - began)
            bar.update()
    speed = {name: timed.frames / min(times) for name, times in seconds.items()}
    say(
        {
            "benchmark": "compiled",
            "frames_per_second": speed["compiled"],
            "ratio": speed["compiled"] / speed["eager"],
            "against": "eager",
            "first_forecast_seconds": first,
            "largest_difference": f"{(made - sample(timed, 'euler_maruyama', 2)).abs().max():.1e}",
        }
    )


def curve(trial: Trial, counts: Sequence[int]) -> None:
    """Print quality and network evaluations for each solver and number of steps; `ratio` is of the crps_ratios."""
    common = {"benchmark": "solvers", "members": trial.members, "windows": len(trial.windows.clips)}
    base = scored(trial, sample(trial, "euler_maruyama", 2))
    with terminal.progress_bar("solvers", len(SOLVERS) * len(counts), "forecast") as bar:
        for steps in counts:
            for name, solver in SOLVERS.items():
                began = time.perf_counter()
                score = scored(trial, sample(trial, name, steps))
                speed = trial.frames / (time.perf_counter() - began)
                gap = score.minus(base)
                show(
                    common,
                    name,
                    speed,
                    score,
                    steps=steps,
                    evaluations_per_frame=steps * trial.dynamics.evaluations(solver),
                    ratio=score.ratio.value / base.ratio.value,
                    against="euler_maruyama, 2 steps",
                    crps_difference=gap.value,
                    crps_difference_se=gap.se,
                )
                bar.update()


def show(common: dict[str, Any], sampler: str, speed: float, score: Score, **more: Any) -> None:
    quality = {"crps_ratio": score.ratio.value, "crps_ratio_se": score.ratio.se, "spread_skill": score.spread_skill}
    say({**common, "sampler": sampler, "frames_per_second": speed, **quality, **more})


def say(line: dict[str, Any]) -> None:
    terminal.say(
        json.dumps({key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()})
    )


def find_model(args: argparse.Namespace) -> Path:
    """The best/ folder given by --model, or that of the latest finished search."""
    if args.model is not None:
        return find_best(args.model)
    storage = cli.storage_root(args)
    workspace = latest(storage, lambda w: (w.best / MANIFEST).is_file())
    if workspace is None:
        raise ConfigError(f"--model: no finished search in {str(storage)!r}; run make demo first")
    return workspace.best


def open_trial(args: argparse.Namespace) -> Trial:
    """Load the model, and read validation windows of its experiment."""
    best = find_model(args)
    folder = best.resolve().parent
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"--model: {best} is not in an experiment's folder; its experiment's validation clips are needed"
        )
    workspace = Workspace(folder.parent, folder.name)
    experiment = workspace.experiment()
    data, seed = ExperimentData(experiment, workspace), experiment.evaluation.seed
    windows = forecast_windows(data.latents("val"), experiment, 4 if args.quick else args.windows, seed)
    members = 2 if args.quick else args.members
    return Trial(load_predictor(best), data, windows, members, args.batch_size, seed)


def make_parser() -> cli.Parser:
    parser = cli.Parser(
        prog=PROG, description="Measure speed and quality of samplers for a trained model.", allow_abbrev=False
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="an experiment's folder, or the best/ in it "
                        "(default: the latest under the storage root)")  # fmt: skip
    parser.add_argument("--storage", metavar="DIR", help="storage root of the experiments (default: $RAYPIPE_STORAGE "
                        "or ~/raypipe)")  # fmt: skip
    parser.add_argument(
        "--windows", type=cli.positive, default=64, metavar="N", help="validation windows (default: 64)"
    )
    parser.add_argument("--timed", type=cli.positive, default=16, metavar="N", help="windows in the timed runs "
                        "(default: 16)")  # fmt: skip
    parser.add_argument("--members", type=cli.positive, default=4, metavar="M", help="members per window (default: 4)")
    parser.add_argument("--batch-size", type=cli.positive, metavar="B", help="forecasts at once, for both samplers "
                        "(default: chosen as in an evaluation)")  # fmt: skip
    parser.add_argument("--threads", type=cli.positive, default=1, metavar="N", help="torch threads (default: 1)")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to test the script; the numbers mean nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    if importlib.util.find_spec("torchsde") is None:
        raise ConfigError(
            "torchsde: not installed, but needed for the comparison; pip install -r tests/requirements.txt"
        )
    torch.set_num_threads(args.threads)
    trial = open_trial(args)
    repeats = 1 if args.quick else 3
    say({"benchmark": "sampling", "device": str(choose_device()), "threads": args.threads})
    versus(trial, trial.first(args.timed), repeats)
    batches(trial, repeats, BATCHES[:2] if args.quick else BATCHES)
    compiled(trial.first(args.timed), 1 if args.quick else 10)
    curve(trial, CURVE[:2] if args.quick else CURVE)
    return 0


if __name__ == "__main__":
    raise SystemExit(cli.run(main, PROG))
