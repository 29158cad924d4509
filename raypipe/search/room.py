"""What a planned search needs of disk and memory, and what of it the disks and nodes do not have."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from raypipe.config import Experiment
from raypipe.distributed.capacity import Resources, alive, amount
from raypipe.distributed.rehearsal import node_memory
from raypipe.distributed.trainer import KEEP_CHECKPOINTS
from raypipe.search.dry_run import Plan, Training
from raypipe.search.sizes import BYTES

TRAINED_ON = 4
"""Copies of the weights in the checkpoint of a training that goes on: weights, their average, and two of AdamW."""


def disk_needs(plan: Plan) -> dict[str, int]:
    """Bytes that a search adds to the disk, by what they are."""
    needs = {
        "shards of the dataset": plan.preparation.simulated_bytes,
        "latents": plan.preparation.latent_bytes,
        "models that are kept": sum(_kept(plan.experiment, t) for t in plan.trainings),
        "checkpoints in between": max((_passing(plan, t) for t in plan.trainings), default=0),
    }
    return {name: size for name, size in needs.items() if size}


def _kept(experiment: Experiment, training: Training) -> int:
    """Bytes of the models of a stage that stay when it is over."""
    keep, weights = experiment.search.keep, BYTES * max(training.parameters)
    if training.name == "autoencoder":
        return 3 * weights  # with the two copies of its optimizer
    kept = training.trials if keep == "all" else min(training.trials, keep if isinstance(keep, int) else 1)
    return weights * (kept + training.refits) * (TRAINED_ON if keep == "all" else 1)


def _passing(plan: Plan, training: Training) -> int:
    """Bytes of models that are deleted in the end: of trials that go on or are ranked, and checkpoints of Ray Train."""
    weights = BYTES * max(training.parameters)
    running = min(max(1, plan.places), max(1, training.trials)) * TRAINED_ON
    return weights * max(
        training.trials + running, min(max(1, plan.places), training.refits) * KEEP_CHECKPOINTS * TRAINED_ON
    )


def misfits(plan: Plan, storage: Path) -> Iterator[str]:
    """A line for each thing that does not fit. storage: the storage root, which may not exist yet."""
    for training in plan.trainings:
        yield from _memory(plan, training)
    there = next(folder for folder in (storage, *storage.parents) if folder.exists())
    needed, free = sum(disk_needs(plan).values()), shutil.disk_usage(there).free
    if needed > free:
        yield (
            f"disk: {gigabytes(needed)} are needed, but {there} has {gigabytes(free)} free; choose another --storage "
            "or a smaller --search.keep"
        )
    minutes = plan.experiment.search.minutes
    if minutes is not None and plan.seconds is not None and plan.seconds > 60 * minutes:
        yield (
            f"search.minutes: {minutes:g}, but all of it takes about {plan.seconds / 60:.0f}; it ends with fewer "
            "trials, and --resume runs the others"
        )


def _memory(plan: Plan, training: Training) -> Iterator[str]:
    if training.rehearsed.no_memory:
        yield f"memory: {training.name}: {training.rehearsed.reason}; make the network or train.batch_size smaller"
        return
    measured = training.measured
    if measured is None:
        return
    search = plan.experiment.search
    if measured.device_memory is not None and search.gpus_per_trial:
        sharing = max(1, int(1 / search.gpus_per_trial + 1e-9))
        if sharing * measured.memory > measured.device_memory:
            yield (
                f"memory: {training.name}: {sharing} trials on a GPU need {_gib(sharing * measured.memory)}, but it "
                f"has {_gib(measured.device_memory)}; raise search.gpus_per_trial, or train.accumulate"
            )
    for node in alive().nodes:
        together = min(_room(node, plan), max(training.trials, 1))
        if together * measured.process > node_memory(node) > 0:
            yield (
                f"memory: {training.name}: {together} trials at a time on a node need "
                f"{_gib(together * measured.process)}, but it has {_gib(node_memory(node))}; lower "
                "search.max_concurrent, or raise search.cpus_per_trial or train.accumulate"
            )
            return


def _room(node: Resources, plan: Plan) -> int:
    """Number of trials at a time on a node."""
    search = plan.experiment.search
    rooms = [node.get("CPU", 0) / search.cpus_per_trial]
    if search.gpus_per_trial:
        rooms.append(node.get("GPU", 0) / search.gpus_per_trial)
    return min(max(1, plan.places) * search.workers_per_trial, int(min(rooms) + 1e-9))


def _gib(size: float) -> str:
    return amount("memory", size).removesuffix(" of memory")


def gigabytes(size: float) -> str:
    """Bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
