"""The latent cache: every frame encoded once, in float16 shards that mirror the shards of frames.

The encoder is an argument: this file knows no network. `key` says which encoder and dataset a cache was
made from, and a cache with another key is never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.common.errors import ConfigError, UserError
from raypipe.data.shards import Shards, open_shards
from raypipe.data.shards.writer import INDEX, PATTERN, Clip, shard_rows, write_index, write_shard

Encode = Callable[[NDArray[np.uint8]], NDArray[Any]]
"""uint8 [n, H, W, 3] -> float [n, C, h, w], for any n up to the batch size."""

TOLERANCE = 0.01
"""Largest norm of (cached - encoded again), as a share of the norm of the frame's latents.

Float16 rounds a value by at most 2^-11, 0.05 percent. A batch of another size, and a CPU in place of a GPU,
add in another order: 1e-6 behind the small encoder, 2e-4 behind a VQGAN. TF32, in which NVIDIA GPUs
convolve by default, rounds the factors of every product by at most 2^-11: emulated, 0.1 to 0.16 percent
behind the encoders here. One percent is six times that, and far below an error: the next frame of a clip of
bodies is 24 percent away, another clip or other weights 50 and more.
"""


def encode_shard(
    frames: Shards,
    shard: int,
    folder: str | Path,
    encode: Encode,
    batch_size: int,
    key: str,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Write the latents of one shard of `frames`, whole or not at all; call `finish` when all are there.

    Memory: one batch of frames, and the shard's latents. advance: called with the frames of each batch.
    Raises ValueError for latents that are not finite in float16, or that come in a wrong number.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, not {batch_size}")
    if not key:
        raise ValueError("key: must not be empty; it ties a cache to its encoder and dataset")
    clips = _clips(frames, shard)
    lengths = frames.lengths[clips]
    latents: NDArray[np.float16] | None = None
    filled = 0
    for batch, clip in _batches(frames, clips, batch_size):
        half = _half(encode(batch), len(batch), frames, clip)
        if latents is None:
            latents = np.empty((int(lengths.sum()), *half.shape[1:]), np.float16)
        latents[filled : filled + len(half)] = half
        filled += len(half)
        if advance is not None:
            advance(len(half))
    assert latents is not None and filled == len(latents)
    parts = np.split(latents, np.cumsum(lengths)[:-1])
    content = [Clip(frames.names[i], part, frames.sources[i]) for i, part in zip(clips, parts, strict=True)]
    write_shard(Path(folder) / frames.shard_names[shard], content, key)


def missing_shards(frames: Shards, folder: str | Path, key: str) -> list[int]:
    """Numbers of the shards of `frames` whose latents are not there yet, or not under this key."""
    return [shard for shard in range(len(frames.shard_names)) if not _is_done(Path(folder), frames, shard, key)]


def cache_latents(frames: Shards, folder: str | Path, encode: Encode, batch_size: int, key: str) -> None:
    """Encode all that is missing in this process; `raypipe.distributed.encoding` does it on a cluster."""
    for shard in missing_shards(frames, folder, key):
        encode_shard(frames, shard, folder, encode, batch_size, key)


def finish(frames: Shards, folder: str | Path, key: str) -> None:
    """Declare the cache of `frames` complete. Raises ValueError naming the first shard that is not there yet."""
    folder = Path(folder)
    missing = missing_shards(frames, folder, key)
    if missing:
        path = folder / frames.shard_names[missing[0]]
        raise UserError(f"{path}: not encoded yet, or by another encoder; run the encoding again")
    older = set(folder.glob(PATTERN)) - {folder / name for name in frames.shard_names}  # of a dataset with more shards
    for path in [*older, *folder.glob(f".{PATTERN}.*.tmp")]:
        path.unlink()
    write_index(folder)


def open_latents(folder: str | Path, key: str) -> Shards:
    """Open a finished cache; frames are float16 [C, h, w]. Raises ValueError if it was made under another key."""
    if not (Path(folder) / INDEX).is_file():
        raise UserError(f"{folder}: no finished latent cache here; encode the frames first")
    latents = open_shards(folder)
    if latents.key != key:
        raise UserError(
            f"{folder}: made under the key {latents.key!r}, not {key!r} (another autoencoder or dataset);"
            f" delete {folder}"
        )
    return latents


def check_latents(frames: Shards, latents: Shards, encode: Encode, count: int, rng: np.random.Generator) -> None:
    """Encode `count` frames again, of as many shards as can be, and compare them with their cache.

    Raises ConfigError, naming the shard, for a difference above TOLERANCE.
    """
    order = rng.permutation(len(frames.shard_names))
    clips = np.array([rng.choice(_clips(frames, int(order[k % len(order)]))) for k in range(count)], dtype=np.int64)
    numbers = rng.integers(frames.lengths[clips])
    again = encode(frames.windows(clips, numbers, 1)[:, 0]).astype(np.float64)
    cached = latents.windows(clips, numbers, 1)[:, 0].astype(np.float64)
    for k, (clip, number) in enumerate(zip(clips.tolist(), numbers.tolist(), strict=True)):
        where = f"{latents.path(clip)}: clip {latents.names[clip]}, frame {number}"
        remedy = f"delete {latents.folder}, and the same command encodes it anew"
        if again.shape != cached.shape:
            raise ConfigError(f"{where}: is {list(cached[k].shape)}, and encoded now {list(again[k].shape)}; {remedy}")
        difference, size = np.linalg.norm(again[k] - cached[k]), np.linalg.norm(again[k])
        if not difference <= TOLERANCE * size:
            share = difference / max(size, np.finfo(float).tiny)
            raise ConfigError(
                f"{where}: differs from the same frame encoded now by {share:.2g} of its size, and the most is"
                f" {TOLERANCE}; {remedy}"
            )


def _clips(frames: Shards, shard: int) -> list[int]:
    return [int(i) for i in np.flatnonzero(frames.shard_of == shard)]


def _is_done(folder: Path, frames: Shards, shard: int, key: str) -> bool:
    """Whether the shard's file holds exactly its clips, under this key."""
    path = folder / frames.shard_names[shard]
    if not path.is_file():
        return False
    try:
        rows, found = shard_rows(path)
    except ValueError:
        return False
    wanted = [(frames.names[i], int(frames.lengths[i])) for i in _clips(frames, shard)]
    return found == key and [(row["clip"], row["frames"]) for row in rows] == wanted


def _batches(frames: Shards, clips: list[int], size: int) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """The frames of some clips in full batches, which run across the borders of clips; each with its last clip."""
    parts: list[NDArray[np.uint8]] = []
    room = size
    for i in clips:
        begin, length = 0, int(frames.lengths[i])
        while begin < length:
            count = min(room, length - begin)
            parts.append(frames.windows([i], [begin], count)[0])
            begin, room = begin + count, room - count
            if room == 0 or (i == clips[-1] and begin == length):
                yield np.concatenate(parts), i
                parts, room = [], size


def _half(latents: NDArray[Any], count: int, frames: Shards, i: int) -> NDArray[np.float16]:
    where = f"{frames.path(i)}: latents up to clip {frames.names[i]}"
    if latents.ndim != 4 or len(latents) != count:
        raise UserError(f"{where}: must be [{count}, C, h, w], not {list(latents.shape)}")
    with np.errstate(over="ignore"):
        half = latents.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(latents).max())
        raise UserError(f"{where}: reach {largest:.3g}, beyond float16; scale the latents to about unit size")
    return half
