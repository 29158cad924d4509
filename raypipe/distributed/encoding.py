"""Encode the latent cache of an experiment on the Ray cluster; each idle worker gets the next shard."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from raypipe import checkpoint
from raypipe.common import terminal
from raypipe.common.device import choose_device
from raypipe.common.locks import file_lock
from raypipe.config import ConfigError
from raypipe.data.latents import Encode, check_latents, encode_shard, finish, missing_shards
from raypipe.data.shards import Shards
from raypipe.data.shards.writer import INDEX
from raypipe.data.splits import Split
from raypipe.distributed.connection import scales_up
from raypipe.distributed.failures import plain_errors
from raypipe.distributed.waiting import Waiting, waiting_for
from raypipe.workspace.dataset import ExperimentData, frame_encoder

BATCH_PIXELS = 64 * 64 * 64
"""Pixels per batch: 64 frames of 64x64, or fewer larger frames, so that memory does not grow with the frame size."""
CHECKED_FRAMES = 4
"""Number of frames of each split that every run encodes again and compares with the cache."""
POLL_SECONDS = 0.5
"""Interval at which finished shards are collected and the progress bar is updated."""


@dataclass(frozen=True)
class Piece:
    """The unit of work of a worker: one shard of a split. frames: of the shard; key: of the cache of the split."""

    split: Split
    shard: int
    frames: int
    key: str


def prepare_latents(data: ExperimentData, *, use_gpu: bool = False) -> None:
    """Encode every shard that is not cached yet, then compare some frames of every split with the cache.

    A worker that dies is replaced, and its shard is restarted, up to train.max_failures times.
    Raises ConfigError if more workers die on one shard, or if the cached latents differ from the encoded frames;
    UserError if the cache was made with another autoencoder or dataset.
    """
    latents = data.workspace.folder / "latents"
    latents.mkdir(parents=True, exist_ok=True)
    with file_lock(latents / ".lock"):  # a concurrent run of the experiment waits here, then uses the finished cache
        unfinished = [split for split in data.splits if not (data.cache(split) / INDEX).is_file()]
        pieces = [piece for split in unfinished for piece in _pieces(data, split)]
        if pieces:
            _encode_all(data, pieces, use_gpu)
        for split in unfinished:
            finish(data.encoded_frames(split), data.cache(split), data.cache_key(split))
    # Few frames are compared, so the CPU is enough; the driver has no GPU reserved.
    encode = frame_encoder(checkpoint.load_autoencoder(data.workspace.autoencoder), torch.device("cpu"))
    rng = np.random.default_rng(data.experiment.train.random_seed)
    for split in data.splits:
        check_latents(data.encoded_frames(split), data.latents(split), encode, CHECKED_FRAMES, rng)


def _pieces(data: ExperimentData, split: Split) -> list[Piece]:
    frames, key = data.encoded_frames(split), data.cache_key(split)
    counts = np.bincount(frames.shard_of, weights=frames.lengths)
    return [Piece(split, i, int(counts[i]), key) for i in missing_shards(frames, data.cache(split), key)]


class _Encoder:
    """Actor that encodes shards.

    It loads the autoencoder with its first shard, not in __init__, so that a crash while loading counts against
    max_task_retries.
    """

    def __init__(self, data: ExperimentData, use_gpu: bool) -> None:
        self._data, self._use_gpu = data, use_gpu
        self._splits: dict[Split, Shards] = {}
        self._done = 0

    @cached_property
    def _encode(self) -> Encode:
        device = choose_device() if self._use_gpu else torch.device("cpu")
        return frame_encoder(checkpoint.load_autoencoder(self._data.workspace.autoencoder), device)

    def encode(self, piece: Piece) -> None:
        self._done = 0
        if piece.split not in self._splits:
            self._splits[piece.split] = self._data.encoded_frames(piece.split)
        frames = self._splits[piece.split]
        height, width = frames.frame_shape[:2]
        batch = max(1, BATCH_PIXELS // (height * width))
        encode_shard(frames, piece.shard, self._data.cache(piece.split), self._encode, batch, piece.key, self._advance)

    def _advance(self, frames: int) -> None:
        self._done += frames

    def done(self) -> int:
        """Number of frames of the current piece encoded so far. Runs in a second thread while `encode` runs."""
        return self._done


def _encode_all(data: ExperimentData, pieces: list[Piece], use_gpu: bool) -> None:
    resources = ray.cluster_resources()
    slots = int(resources.get("GPU" if use_gpu else "CPU", 1))
    if scales_up():
        slots = max(slots, data.experiment.train.num_workers)
    encoder = ray.remote(_Encoder).options(
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
        max_restarts=-1,
        max_task_retries=data.experiment.train.max_failures,
        max_concurrency=2,
    )
    # The longest shards come first, so that the workers finish at about the same time.
    waiting = deque(sorted(pieces, key=lambda piece: -piece.frames))
    workers = _Workers(data)
    each = {"CPU": 1, "GPU": 1 if use_gpu else 0}
    standstill = Waiting(lambda: waiting_for(f"the encoding of {len(workers.running)} shards", each))
    with terminal.progress_bar("encode frames", sum(piece.frames for piece in pieces), "frame", leave=False) as bar:
        try:
            for _ in range(max(1, min(slots, len(pieces)))):
                workers.assign(encoder.remote(data, use_gpu), waiting.popleft())
            while workers.running:
                for worker in workers.collect_idle():
                    # End an idle worker: a worker that is being restarted may be waiting for its CPU.
                    if waiting:
                        workers.assign(worker, waiting.popleft())
                    else:
                        ray.kill(worker)
                workers.show(bar)
                standstill.look(bar.n)
        finally:
            for worker, _ in workers.running.values():
                ray.kill(worker)


class _Workers:
    """The busy workers and their progress.

    running: worker and piece by the reference of the remote `encode` call.
    """

    def __init__(self, data: ExperimentData) -> None:
        self.running: dict[Any, tuple[Any, Piece]] = {}
        self._data = data
        self._progress_requests: dict[Any, Any] = {}
        self._partial_frames: dict[Any, int] = {}
        self._finished_frames = 0

    def assign(self, worker: Any, piece: Piece) -> None:
        self.running[worker.encode.remote(piece)] = worker, piece

    def collect_idle(self) -> list[Any]:
        """Wait up to POLL_SECONDS; return the workers that finished their piece.

        Raises ConfigError if workers died on a piece more than train.max_failures times.
        """
        calls, _ = ray.wait(list(self.running), timeout=POLL_SECONDS)
        return [self._finish(call) for call in calls]

    def _finish(self, call: Any) -> Any:
        worker, piece = self.running[call]
        try:
            with plain_errors():
                ray.get(call)
        except RayTaskError:
            raise
        except RayError as error:
            frames = self._data.encoded_frames(piece.split)
            times = self._data.experiment.train.max_failures + 1
            raise ConfigError(
                f"{frames.folder / frames.shard_names[piece.shard]}: {times} workers died encoding it, perhaps out of"
                " memory; free memory and run the same command again to encode the remaining shards"
            ) from error
        del self.running[call]
        self._progress_requests.pop(call, None)
        self._partial_frames.pop(call, None)
        self._finished_frames += piece.frames
        return worker

    def show(self, bar: "tqdm[Any]") -> None:
        """Update the bar without waiting for workers that do not answer."""
        for call, (worker, _) in self.running.items():
            if call not in self._progress_requests:
                self._progress_requests[call] = worker.done.remote()
            elif ray.wait([self._progress_requests[call]], timeout=0)[0]:
                try:
                    self._partial_frames[call] = ray.get(self._progress_requests.pop(call))
                except RayError:
                    self._partial_frames[call] = 0  # the worker died; its piece starts again
        bar.update(self._finished_frames + sum(self._partial_frames.values()) - bar.n)
