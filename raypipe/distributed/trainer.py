"""Run training jobs under Ray Train's TorchTrainer; this is the driver's side."""

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from raypipe.common.device import train_backend
from raypipe.common.interrupts import interrupts_restored
from raypipe.common.terminal import progress_bar
from raypipe.distributed.capacity import check_training
from raypipe.distributed.failures import plain_errors
from raypipe.distributed.gauges import speed_gauge
from raypipe.distributed.ray_internals import LeanTorchTrainer
from raypipe.distributed.training_job import Job, Settings, finished
from raypipe.distributed.waiting import Waiting, waiting_for
from raypipe.distributed.worker import work
from raypipe.training.loop import DivergedError
from raypipe.training.monitor import read_metrics, steps_per_second

logger = logging.getLogger(__name__)


KEEP_CHECKPOINTS = 5
"""Number of latest checkpoints that Ray Train keeps of a run."""


def train_jobs(jobs: Sequence[Job], settings: Settings) -> None:
    """Train the jobs in one worker group: starting a group takes longer than a short training.

    Finished jobs are skipped, an interrupted job is resumed from its last checkpoint, and failed workers are replaced
    up to `max_failures` times. Raises ConfigError if the cluster is too small for the workers, and DivergedError,
    which names the job, as soon as a job diverges: it is not retried, since it would diverge again.
    """
    left = [job for job in jobs if not finished(job)]
    if not left:
        return
    check_training(settings)
    trainer = LeanTorchTrainer(
        cast(Any, work),  # Ray returns its result, though the annotation of TorchTrainer says None
        train_loop_config={"jobs": list(jobs), "settings": settings},
        torch_config=TorchConfig(backend=train_backend(settings.use_gpu)),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker=_resources(settings),
        ),
        run_config=RunConfig(
            name=settings.name,
            storage_path=str(settings.storage),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
        ),
    )
    with _progress_line(left, settings), interrupts_restored(), plain_errors():
        result: Any = trainer.fit()
    if result.return_value is not None:
        raise DivergedError(result.return_value)
    if not settings.keep_checkpoints:
        shutil.rmtree(settings.storage / settings.name, ignore_errors=True)


def _resources(settings: Settings) -> dict[str, float]:
    return {"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.use_gpu else {})


def _workers(settings: Settings) -> str:
    return "1 worker" if settings.num_workers == 1 else f"{settings.num_workers} workers"


@contextmanager
def _progress_line(jobs: Sequence[Job], settings: Settings) -> Iterator[None]:
    """Show progress over the steps of all jobs, read from the metrics files that the workers write."""
    stopped = threading.Event()
    gauge = speed_gauge(*jobs[0].label.group.rsplit("/", 1)) if settings.show_progress else None
    earlier = {job.folder: read_metrics(job.folder)[-1:] for job in jobs}
    bar = progress_bar("train", sum(job.steps for job in jobs), "step", disable=not settings.show_progress)
    waiting = Waiting(lambda: waiting_for(_workers(settings), _resources(settings)))

    def watch() -> None:
        while not stopped.wait(0.5):
            if settings.show_progress:
                update()
                waiting.look(bar.n)

    def update() -> None:
        done, latest, speed = 0, None, 0.0
        for job in jobs:
            rows = read_metrics(job.folder)
            last = rows[-1:]
            ended = finished(job)  # perhaps before its last step
            if not ended and last != earlier[job.folder]:
                speed += steps_per_second(rows)
            done += job.steps if ended else last[0]["step"] if last else 0
            if last and (latest is None or not ended):
                latest = (job.folder.name, last[0])
        if latest is not None:
            name, row = latest
            bar.set_description_str(f"train {name}", refresh=False)
            bar.set_postfix_str(f"loss {row['loss']:.4g}, {row['windows_per_second']:.0f} windows/s", refresh=False)
        bar.update(done - bar.n)
        if gauge is not None:
            gauge.set(speed)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        stopped.set()
        watcher.join()
        update()
    finally:
        stopped.set()
        watcher.join()
        if gauge is not None:
            gauge.set(0.0)
        bar.close()
