"""The latent cache of an experiment, made on the cluster: shards are handed out one by one to whoever is free."""

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch
from filelock import FileLock
from ray.exceptions import RayError, RayTaskError
from tqdm import tqdm

from raypipe import checkpoint
from raypipe.common import terminal
from raypipe.common.device import choose_device
from raypipe.config import ConfigError
from raypipe.data.latents import Encode, check_latents, encode_shard, finish, missing_shards
from raypipe.data.shards import Shards
from raypipe.data.shards.writer import INDEX
from raypipe.distributed.connection import scales_up
from raypipe.distributed.failures import plain_errors
from raypipe.workspace.dataset import ExperimentData, frame_encoder
from raypipe.workspace.layout import SPLITS, Split

BATCH_PIXELS = 64 * 64 * 64
"""Pixels of a batch: 64 frames of 64x64, and fewer larger ones, so that what it takes does not grow with the frame."""
CHECKED_FRAMES = 4
"""Frames of each split that every run encodes again, to compare them with the cache."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Piece:
    """What one worker does at a time: a shard of a split, and the key of its cache."""

    split: Split
    shard: int
    frames: int
    key: str


def prepare_latents(data: ExperimentData, *, use_gpu: bool = False) -> None:
    """Encode every shard that is not cached yet; then compare some frames of every split with their cache.

    A worker that dies is replaced, and its shard begun again up to train.max_failures times.
    Raises ConfigError for a shard that kills more workers, and for a cache that does not hold what the
    autoencoder makes of the frames; ValueError for one that was made by another autoencoder or of other data.
    """
    latents = data.workspace.folder / "latents"
    latents.mkdir(parents=True, exist_ok=True)
    with FileLock(latents / ".lock"):  # a second run of the experiment waits, and finds the cache made
        unfinished = [split for split in SPLITS if not (data.cache(split) / INDEX).is_file()]
        pieces = [piece for split in unfinished for piece in _pieces(data, split)]
        if pieces:
            _encode_all(data, pieces, use_gpu)
        for split in unfinished:
            finish(data.frames(split), data.cache(split), data.cache_key(split))
    # On the CPU: the driver reserves no GPU, and these are few frames.
    encode = frame_encoder(checkpoint.load_autoencoder(data.workspace.autoencoder), torch.device("cpu"))
    rng = np.random.default_rng(data.experiment.train.random_seed)
    for split in SPLITS:
        check_latents(data.frames(split), data.latents(split), encode, CHECKED_FRAMES, rng)


def _pieces(data: ExperimentData, split: Split) -> list[Piece]:
    frames, key = data.frames(split), data.cache_key(split)
    counts = np.bincount(frames.shard_of, weights=frames.lengths)
    return [Piece(split, i, int(counts[i]), key) for i in missing_shards(frames, data.cache(split), key)]


class _Encoder:
    """A worker. It loads the autoencoder once, with its first shard: if that kills it, the shard has failed."""

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
            self._splits[piece.split] = self._data.frames(piece.split)
        frames = self._splits[piece.split]
        height, width = frames.frame_shape[:2]
        batch = max(1, BATCH_PIXELS // (height * width))
        encode_shard(frames, piece.shard, self._data.cache(piece.split), self._encode, batch, piece.key, self._advance)

    def _advance(self, frames: int) -> None:
        self._done += frames

    def done(self) -> int:
        """Frames of the present piece that are encoded; answered by a second thread, beside the work."""
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
    waiting = deque(sorted(pieces, key=lambda piece: -piece.frames))  # the longest first, so that all end together
    crew = _Crew(data)
    with terminal.progress_bar("encode frames", sum(piece.frames for piece in pieces), "frame", leave=False) as bar:
        try:
            for _ in range(max(1, min(slots, len(pieces)))):
                crew.hand_out(encoder.remote(data, use_gpu), waiting.popleft())
            while crew.running:
                for worker in crew.free():
                    # A worker without work is let go: one that was preempted may wait for its CPU.
                    if waiting:
                        crew.hand_out(worker, waiting.popleft())
                    else:
                        ray.kill(worker)
                crew.show(bar)
        finally:
            for worker, _ in crew.running.values():
                ray.kill(worker)


class _Crew:
    """The workers that have a piece, by the call that does it, and how far they are."""

    def __init__(self, data: ExperimentData) -> None:
        self.running: dict[Any, tuple[Any, Piece]] = {}
        self._data = data
        self._asked: dict[Any, Any] = {}
        self._partly: dict[Any, int] = {}
        self._whole = 0

    def hand_out(self, worker: Any, piece: Piece) -> None:
        self.running[worker.encode.remote(piece)] = worker, piece

    def free(self) -> list[Any]:
        """The workers that have finished their piece by now. Raises ConfigError for a piece that failed."""
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
            frames = self._data.frames(piece.split)
            times = self._data.experiment.train.max_failures + 1
            raise ConfigError(
                f"{frames.folder / frames.shard_names[piece.shard]}: {times} workers died encoding it, of too little"
                " memory perhaps; free some, and the same command goes on with what is missing"
            ) from error
        del self.running[call]
        self._asked.pop(call, None)
        self._partly.pop(call, None)
        self._whole += piece.frames
        return worker

    def show(self, bar: "tqdm[Any]") -> None:
        """Bring the bar up to date, without waiting for workers that are busy or gone."""
        for call, (worker, _) in self.running.items():
            if call not in self._asked:
                self._asked[call] = worker.done.remote()
            elif ray.wait([self._asked[call]], timeout=0)[0]:
                try:
                    self._partly[call] = ray.get(self._asked.pop(call))
                except RayError:
                    self._partly[call] = 0  # it died; its piece begins again
        bar.update(self._whole + sum(self._partly.values()) - bar.n)
