"""One rank's part of test_conformance: `python ranks.py RANK WORLD FOLDER` trains every case and writes what came out.

With a world of 1 it is the reference. Under DDP a parameter that a step does not use makes the next step fail.
"""

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.data.batches import TrainBatch
from raypipe.models.components import Joint, build_component
from raypipe.training.component_task import component_task
from raypipe.training.loop import Progress, Schedule, Task, fit
from tests.models.small import CHANNELS, KINDS, settings_of

CASES = list(itertools.product(KINDS, [False, True], [1, 2]))
"""kind, time_input, accumulate."""
STEPS, TOTAL = 3, 6


def case_name(kind: str, time_input: bool, accumulate: int) -> str:
    return f"{kind}-{time_input}-{accumulate}"


def experiment(kind: str, **values: object) -> config.Experiment:
    """A tiny network on windows of two latents and the next."""
    base = {"model.num_input_frames": 2, "model.inner_dim": 16, "train.steps": STEPS, "train.warmup_steps": 0}
    return config.replace(config.Experiment(), **(base | settings_of(kind) | values))


def module_of(settings: config.Experiment) -> nn.Module:
    torch.manual_seed(0)
    return build_component(settings.train.component, settings.model, CHANNELS, settings.sde.noise)


def windows(settings: config.Experiment, step: int, scale: float = 1.0) -> Tensor:
    """The global batch of a step: latents [TOTAL, K + 1, CHANNELS, 4, 6], or K + 2 if a score is the loss."""
    generator = torch.Generator().manual_seed(100 + step)
    frames = 4 if settings.train.scores_forecasts else 3
    return scale * torch.randn(TOTAL, frames, CHANNELS, 4, 6, generator=generator)


def task_of(settings: config.Experiment, module: nn.Module) -> Task:
    torch.manual_seed(7)
    flow: nn.Module | None = build_component("flow", settings.model, CHANNELS).eval().requires_grad_(False)
    flow = flow if settings.train.component == "diffusion" else None
    joint = getattr(module, "module", module)
    seen = isinstance(joint, Joint) and joint.interpolates
    return component_task(module, settings, flow=flow, noise_scale=joint.scale if seen else None)


def train(kind: str, time_input: bool, accumulate: int, rank: int, world: int) -> dict[str, Tensor]:
    """The weights after some steps, and the loss reported at the end."""
    settings = experiment(kind, **{"model.time_input": time_input})
    module = module_of(settings)
    wrapped = nn.parallel.DistributedDataParallel(module) if world > 1 else module
    begin, end = (4, 6) if rank else (0, 4 if world > 1 else TOTAL)  # unequal parts, as at the end of an epoch

    def batches(step: int) -> TrainBatch:
        data = windows(settings, step)[begin:end]
        return TrainBatch(data, torch.zeros(end - begin, dtype=torch.long), TOTAL, begin, step)

    reports: list[Progress] = []
    # Plain descent: Adam enlarges the rounding errors that are all the gradient of a key's bias.
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = Schedule(STEPS, 0.1, kind="sqrt", accumulate=accumulate)
    fit(task_of(settings, wrapped), batches, schedule, reports.append, optimizer=optimizer, world_size=world)
    return {**module.state_dict(), "loss": torch.tensor(reports[-1].loss), "norm": torch.tensor(reports[-1].grad_norm)}


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    if world > 1:
        store = torch.distributed.FileStore(str(folder / "store"), world)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    for case in CASES:
        torch.save(train(*case, rank, world), folder / f"{case_name(*case)}-{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
