"""The latent cache: every frame encoded once, in float16 shards that mirror the shards of frames.

The encoder is an argument: this file knows no network. `key` says which encoder and dataset a cache was
made from, and a cache with another key is never read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raypipe.data.packing import INDEX, Clip, shard_rows, write_index, write_shard
from raypipe.data.shards import Shards, open_shards

Encode = Callable[[NDArray[np.uint8]], NDArray[Any]]


def cache_latents(
    frames: Shards,
    folder: str | Path,
    encode: Encode,
    batch_size: int,
    key: str,
    progress: Callable[[int, int], None] | None = None,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Encode the shards rank, rank + world, ... for `part` = (rank, world); call `finish` when all ranks are done.

    encode: uint8 [n, H, W, 3] -> float [n, C, h, w], n up to batch_size. progress: called with (frames
    done, frames in all) of this part. A shard that stands already under the same key is kept.
    Raises ValueError for latents that are not finite in float16, or that come in a wrong number.
    """
    rank, world = part
    if not 0 <= rank < world or batch_size < 1:
        raise ValueError(f"part, batch_size: must be (rank, world) and at least 1, not {part} and {batch_size}")
    if not key:
        raise ValueError("key: must not be empty; it ties a cache to its encoder and dataset")
    own = range(rank, len(frames.shard_names), world)
    clips_of = {shard: np.flatnonzero(frames.shard_of == shard).tolist() for shard in own}
    total = sum(int(frames.lengths[clips].sum()) for clips in clips_of.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    for shard, clips in clips_of.items():
        path = Path(folder) / frames.shard_names[shard]
        if _is_done(path, frames, clips, key):
            advance(int(frames.lengths[clips].sum()))
        else:
            write_shard(path, _encoded(frames, clips, encode, batch_size, advance), key)


def finish(frames: Shards, folder: str | Path, key: str) -> None:
    """Declare the cache of `frames` complete. Raises ValueError naming the first shard that is not there yet."""
    folder = Path(folder)
    for shard, name in enumerate(frames.shard_names):
        if not _is_done(folder / name, frames, np.flatnonzero(frames.shard_of == shard).tolist(), key):
            raise ValueError(f"{folder / name}: not encoded yet, or by another encoder; run the encoding again")
    for path in set(folder.glob("shard_*.hdf5")) - {folder / name for name in frames.shard_names}:
        path.unlink()  # of an older dataset that had more shards
    write_index(folder)


def open_latents(folder: str | Path, key: str) -> Shards:
    """Open a finished cache; frames are float16 [C, h, w]. Raises ValueError if it was made under another key."""
    if not (Path(folder) / INDEX).is_file():
        raise ValueError(f"{folder}: no finished latent cache here; encode the frames first")
    latents = open_shards(folder)
    if latents.key != key:
        raise ValueError(
            f"{folder}: made under the key {latents.key!r}, not {key!r} (another autoencoder or dataset);"
            " delete the cache"
        )
    return latents


def _is_done(path: Path, frames: Shards, clips: list[int], key: str) -> bool:
    """Whether a shard holds exactly these clips under this key."""
    if not path.is_file():
        return False
    try:
        rows, found = shard_rows(path)
    except ValueError:
        return False
    wanted = [(frames.names[i], int(frames.lengths[i])) for i in clips]
    return found == key and [(row["clip"], row["frames"]) for row in rows] == wanted


def _encoded(
    frames: Shards, clips: list[int], encode: Encode, batch_size: int, advance: Callable[[int], None]
) -> list[Clip]:
    """The latents of some clips, encoded in full batches that run across the borders of clips."""
    encoded: list[NDArray[np.float16]] = []
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for i in clips:
        waiting.append(frames.clip(i))
        count += len(waiting[-1])
        last = i == clips[-1]
        if count >= batch_size or last:
            block = np.concatenate(waiting)
            whole = len(block) if last else len(block) // batch_size * batch_size
            for begin in range(0, whole, batch_size):
                part = block[begin : min(begin + batch_size, whole)]
                encoded.append(_half(encode(part), len(part), frames, i))
                advance(len(part))
            waiting, count = [block[whole:]], len(block) - whole
    borders = np.cumsum([frames.lengths[i] for i in clips])[:-1]
    latents = np.split(np.concatenate(encoded), borders)
    return [Clip(frames.names[i], content, frames.sources[i]) for i, content in zip(clips, latents, strict=True)]


def _half(latents: NDArray[Any], count: int, frames: Shards, i: int) -> NDArray[np.float16]:
    where = f"{frames.path(i)}: latents up to clip {frames.names[i]}"
    if latents.ndim != 4 or len(latents) != count:
        raise ValueError(f"{where}: must be [{count}, C, h, w], not {list(latents.shape)}")
    with np.errstate(over="ignore"):
        half = latents.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(latents).max())
        raise ValueError(f"{where}: reach {largest:.3g}, beyond float16; scale the latents to about unit size")
    return half
