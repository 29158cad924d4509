"""The latent cache: the latents of every frame, in float16 shards with the same names and clips as the frame shards.

The encoder is passed as a function. `key` identifies the encoder and dataset of a cache; a cache with another key is
never used.
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
"""Encoder: uint8 frames [n, H, W, 3] to float latents [n, C, h, w], for any n up to the batch size."""

TOLERANCE = 0.01
"""Largest accepted relative difference |cached - encoded again| / |encoded again| of a frame's latents.

Expected differences: float16 rounds a value by at most 2^-11, 0.05 percent. Another batch size, or a CPU instead of a
GPU, changes the order of summation: 1e-6 for the small encoder, 2e-4 for a VQGAN. TF32, NVIDIA's default for
convolutions, rounds the factors of each product by at most 2^-11: 0.1 to 0.16 percent for the encoders here (emulated).
One percent is six times that, and far below an actual error: in the demo, the next frame differs by 24 percent; another
clip or other weights differ by 50 percent or more.
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
    """Write the latents of one shard of `frames` atomically. Call `finish` after all shards are encoded.

    Holds one batch of frames and the shard's latents in memory. shard: its index. advance: called with the number of
    frames of each batch. Raises UserError if the latents are not finite in float16 or have a wrong shape.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: must be at least 1, not {batch_size}")
    if not key:
        raise ValueError("key: must not be empty, as it identifies the encoder and dataset of the cache")
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
    """Indices of the shards of `frames` whose latents are missing, damaged, or have another key."""
    return [shard for shard in range(len(frames.shard_names)) if not _is_done(Path(folder), frames, shard, key)]


def cache_latents(frames: Shards, folder: str | Path, encode: Encode, batch_size: int, key: str) -> None:
    """Encode all missing shards in this process. On a cluster, use `raypipe.distributed.encoding`."""
    for shard in missing_shards(frames, folder, key):
        encode_shard(frames, shard, folder, encode, batch_size, key)


def finish(frames: Shards, folder: str | Path, key: str) -> None:
    """Write the manifest, which marks the cache as complete. Raises UserError naming the first missing shard."""
    folder = Path(folder)
    missing = missing_shards(frames, folder, key)
    if missing:
        path = folder / frames.shard_names[missing[0]]
        raise UserError(f"{path}: not encoded yet, or with another encoder; run the encoding again")
    # An earlier version of the dataset may have had more shards.
    outdated = set(folder.glob(PATTERN)) - {folder / name for name in frames.shard_names}
    for path in [*outdated, *folder.glob(f".{PATTERN}.*.tmp")]:
        path.unlink()
    write_index(folder)


def open_latents(folder: str | Path, key: str) -> Shards:
    """Open a finished cache; its frames are float16 [C, h, w]. Raises UserError if it is missing or has another key."""
    if not (Path(folder) / INDEX).is_file():
        raise UserError(f"{folder}: no finished latent cache in this folder; encode the frames first")
    latents = open_shards(folder)
    if latents.key != key:
        raise UserError(
            f"{folder}: has the key {latents.key!r}, not {key!r}, so it is of another autoencoder or dataset;"
            f" delete {folder}"
        )
    return latents


def check_latents(frames: Shards, latents: Shards, encode: Encode, count: int, rng: np.random.Generator) -> None:
    """Encode `count` random frames again, spread over the shards, and compare them with the cache.

    Raises ConfigError, naming the shard, if a relative difference exceeds `TOLERANCE`.
    """
    order = rng.permutation(len(frames.shard_names))
    clips = np.array([rng.choice(_clips(frames, int(order[k % len(order)]))) for k in range(count)], dtype=np.int64)
    numbers = rng.integers(frames.lengths[clips])
    again = encode(frames.windows(clips, numbers, 1)[:, 0]).astype(np.float64)
    cached = latents.windows(clips, numbers, 1)[:, 0].astype(np.float64)
    for k, (clip, number) in enumerate(zip(clips.tolist(), numbers.tolist(), strict=True)):
        where = f"{latents.path(clip)}: clip {latents.names[clip]}, frame {number}"
        remedy = f"delete {latents.folder} and run the same command again to encode the frames"
        if again.shape != cached.shape:
            raise ConfigError(
                f"{where}: cached {list(cached[k].shape)}, but encoded again {list(again[k].shape)}; {remedy}"
            )
        difference, size = np.linalg.norm(again[k] - cached[k]), np.linalg.norm(again[k])
        if not difference <= TOLERANCE * size:
            share = difference / max(size, np.finfo(float).tiny)
            raise ConfigError(
                f"{where}: the cached latents differ from the frame encoded again by {share:.2g} of their norm, more"
                f" than {TOLERANCE}; {remedy}"
            )


def _clips(frames: Shards, shard: int) -> list[int]:
    return [int(i) for i in np.flatnonzero(frames.shard_of == shard)]


def _is_done(folder: Path, frames: Shards, shard: int, key: str) -> bool:
    """Whether the latents of a shard exist, with the same clips and lengths and under this key."""
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
    """Yield the frames of some clips in full batches, which may span clips, each with the index of its last clip."""
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
        raise UserError(
            f"{where}: not finite in float16 (largest magnitude {largest:.3g}); scale the latents to about unit size"
        )
    return half
