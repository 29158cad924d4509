"""Ray underneath the verbs: the cluster, and trainings under TorchTrainer."""

import logging
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from torch import nn

from raypipe.checkpoint import read_meta
from raypipe.common.device import train_backend
from raypipe.common.terminal import progress_bar
from raypipe.config import ConfigError
from raypipe.distributed.connection import scales_up
from raypipe.distributed.failures import plain_errors
from raypipe.training.loop import DivergedError, Progress
from raypipe.training.monitor import Label, Monitor, read_metrics

logger = logging.getLogger(__name__)


KEEP_CHECKPOINTS = 5
REPORTS_A_CHECKPOINT = 5
"""Progress is written this many times between two checkpoints."""


class Trainee(Protocol):
    """Something in training: it advances, and can be put away and taken up again."""

    step: int

    def advance(self, stop: int, report: Any, every: int) -> None: ...
    def save(self, folder: Path) -> None: ...
    def restore(self, folder: Path) -> None: ...


class Job(Protocol):
    """One training, described so that any worker can begin it."""

    @property
    def folder(self) -> Path:
        """Where the trained model goes; it stands there once the training is over."""

    @property
    def steps(self) -> int: ...
    @property
    def checkpoint_every(self) -> int: ...
    @property
    def label(self) -> Label: ...
    def build(self, rank: int, world_size: int, device: torch.device, wrap: Any) -> Trainee: ...


@dataclass(frozen=True)
class Settings:
    """How jobs run under Ray Train.

    name: of the Ray run, unique below `storage`; resuming takes the same name. side_by_side: each worker
    trains jobs of its own, which beats sharing each job where there are as many jobs as workers.
    start_from: a saved model folder that the (only) job goes on from.
    """

    storage: Path
    name: str
    num_workers: int = 1
    use_gpu: bool = False
    cpus_per_worker: float = 1
    max_failures: int = 3
    wandb: bool = False
    start_from: Path | None = None
    show_progress: bool = True
    side_by_side: bool = False


def train_jobs(jobs: Sequence[Job], settings: Settings) -> None:
    """Train the jobs in one worker group, whose start costs more than a short training.

    Finished jobs are skipped, an interrupted one goes on from its last checkpoint, failed workers are
    replaced up to max_failures times. Raises ConfigError if the cluster can never hold the workers, and
    DivergedError, naming the job, as soon as one diverges; trying it again would not help.
    """
    left = [job for job in jobs if not finished(job)]
    if not left:
        return
    check_resources(settings)
    trainer = TorchTrainer(
        cast(Any, _work),  # whose result Ray hands on, though its annotations do not say so
        train_loop_config={"jobs": list(jobs), "settings": settings},
        torch_config=TorchConfig(backend=train_backend(settings.use_gpu)),
        scaling_config=ScalingConfig(
            num_workers=settings.num_workers,
            use_gpu=settings.use_gpu,
            resources_per_worker={"CPU": settings.cpus_per_worker} | ({"GPU": 1} if settings.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=settings.name,
            storage_path=str(settings.storage),
            failure_config=FailureConfig(max_failures=settings.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=KEEP_CHECKPOINTS),
        ),
    )
    with _shown(left, settings.show_progress), _interruptible(), plain_errors():
        result: Any = trainer.fit()
    if result.return_value is not None:
        raise DivergedError(result.return_value)


def finished(job: Job) -> bool:
    """Whether the trained model stands in its folder."""
    folder = job.folder
    return (folder / "config.json").is_file() and read_meta(folder).step >= job.steps


def check_resources(settings: Settings) -> None:
    """Refuse what the cluster could only wait for; a cluster that scales up is taken at its word."""
    total = ray.cluster_resources()
    wanted = settings.num_workers * settings.cpus_per_worker
    if not scales_up() and total.get("CPU", 0) < wanted:
        raise ConfigError(
            f"train.num_workers: {settings.num_workers} workers need {wanted:g} CPUs, and the cluster has "
            f"{total.get('CPU', 0):g}; take fewer workers"
        )
    if settings.use_gpu and not scales_up() and total.get("GPU", 0) < settings.num_workers:
        raise ConfigError(
            f"--num-gpus: {settings.num_workers} GPUs asked for, and the cluster has {total.get('GPU', 0):g}; "
            "leave it out to train on CPUs"
        )


def _work(payload: dict[str, Any]) -> str | None:
    """A Ray Train worker's part: all jobs together with the other ranks, or its own jobs beside theirs.

    Returns why a job diverged, if one did: raised, Ray would take it for a fault and begin it again in vain.
    """
    settings: Settings = payload["settings"]
    jobs: list[Job] = payload["jobs"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.set_num_threads(max(1, int(settings.cpus_per_worker)))

    def wrap(module: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)

    for turn in range(0, len(jobs), world_size if settings.side_by_side else 1):
        mine = jobs[turn] if not settings.side_by_side else jobs[turn + rank] if turn + rank < len(jobs) else None
        if mine is not None and not settings.side_by_side and _most(finished(mine), world_size, device):
            continue
        if settings.side_by_side or world_size == 1:
            worker = _begin(mine, settings, 0, 1, device, None)
        else:
            worker = _begin(mine, settings, rank, world_size, device, wrap)
        most = _most(0 if worker is None else worker.reports_left, world_size, device)
        failure = None if worker is None else worker.train(keeps=settings.side_by_side or rank == 0)
        for _ in range(most - (0 if worker is None else worker.reports)):
            ray.train.report({})  # a report waits for all ranks, those without a job too
        failures = [text for text in _gathered(failure, world_size) if text is not None]
        if failures:
            return failures[0]
    return None


def _begin(
    job: Job | None, settings: Settings, rank: int, world_size: int, device: torch.device, wrap: Any
) -> "_Worker | None":
    """The job taken up where its last checkpoint left it; None if there is none to do."""
    if job is None or finished(job):
        return None
    trainee = job.build(rank, world_size, device, wrap)
    latest = ray.train.get_checkpoint()
    if latest is not None:
        with latest.as_directory() as folder:
            saved = Path(folder) / _slug(job)
            if saved.is_dir():
                trainee.restore(saved)
    if trainee.step == 0 and settings.start_from is not None:
        trainee.restore(settings.start_from)
    return _Worker(job, trainee, wandb=settings.wandb)


def _slug(job: Job) -> str:
    """Tells the jobs of a run apart."""
    return f"{job.folder.parent.name}-{job.folder.name}"


@dataclass
class _Worker:
    """One rank at one job. reports: those made to Ray so far."""

    job: Job
    trainee: Trainee
    wandb: bool
    reports: int = 0

    @property
    def reports_left(self) -> int:
        every, start, end = self.job.checkpoint_every, self.trainee.step, self.job.steps
        return end // every - start // every + (end % every != 0 and start < end)

    def train(self, *, keeps: bool) -> str | None:
        """To the end of the job; the rank that `keeps` writes checkpoints, metrics and the model.

        Returns why the job diverged, if it did.
        """
        job, label = self.job, self.job.label if self.wandb else None
        monitor = Monitor(job.folder, self.trainee.step, wandb=label) if keeps else None

        def report(progress: Progress) -> None:
            if monitor is not None:
                monitor.log(asdict(progress))
            if progress.step % job.checkpoint_every and progress.step != job.steps:
                return
            self.reports += 1
            if not keeps:
                ray.train.report({})
                return
            with tempfile.TemporaryDirectory() as folder:
                self.trainee.save(Path(folder) / _slug(job))
                ray.train.report(asdict(progress), checkpoint=Checkpoint.from_directory(folder))

        try:
            self.trainee.advance(job.steps, report, max(1, job.checkpoint_every // REPORTS_A_CHECKPOINT))
        except DivergedError as error:
            return f"{job.folder.name}: {error}"
        finally:
            if monitor is not None:
                monitor.close()
        if keeps:
            self.trainee.save(job.folder)
        return None


def _most(mine: int, world_size: int, device: torch.device) -> int:
    """The largest value of any rank."""
    if world_size == 1:
        return int(mine)
    value = torch.tensor([int(mine)], device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value.item())


def _gathered(text: str | None, world_size: int) -> list[str | None]:
    """The texts of all ranks."""
    texts = [text] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(texts, text)
    return texts


@contextmanager
def _shown(jobs: Sequence[Job], show: bool) -> Iterator[None]:
    """A progress line over all steps of the jobs, from the metrics that the workers write."""
    over = threading.Event()
    bar = progress_bar("train", sum(job.steps for job in jobs), "step", disable=not show)

    def watch() -> None:
        while not over.wait(0.5):
            update()

    def update() -> None:
        done, latest = 0, None
        for job in jobs:
            last = read_metrics(job.folder)[-1:]
            done += last[0]["step"] if last else 0
            if last and (latest is None or last[0]["step"] < job.steps):
                latest = (job.folder.name, last[0])
        if latest is not None:
            name, row = latest
            bar.set_description_str(f"train {name}", refresh=False)
            bar.set_postfix_str(f"loss {row['loss']:.4g}, {row['windows_per_second']:.0f} windows/s", refresh=False)
        bar.update(done - bar.n)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        over.set()
        watcher.join()
        update()
    finally:
        over.set()
        watcher.join()
        bar.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C as KeyboardInterrupt: Ray Train's handler aborts the run, then exits the process with code 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
