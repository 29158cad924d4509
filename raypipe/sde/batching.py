"""How many forecasts are integrated at once: as many as fit, and no more than pay."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CPU_BATCH = 64
"""On a CPU larger batches leave its caches: measured in experiments/benchmarks/sampling.py."""
FIRST_BATCH = 64
"""On a GPU the first batch measures what a forecast takes."""
LARGEST_BATCH = 8192
MEMORY_SHARE = 0.7
"""Of the GPU memory that is free; the rest is for fragments, and for whoever shares it."""


def in_batches(run: Callable[[slice], Tensor], rows: int, batch_size: int | None, device: torch.device) -> Tensor:
    """`run` on slices of `rows` rows, its results one after the other.

    batch_size: at most so many rows at once; None: chosen. On a GPU the memory that the first batch took says how
    many fit. Where memory runs out all the same, a batch is tried again at half its size, down to one row.
    """
    measures = batch_size is None and device.type == "cuda"
    size = batch_size or (FIRST_BATCH if measures else CPU_BATCH)
    parts: list[Tensor] = []
    done = 0
    while done < rows:
        at_once = min(size, rows - done)
        before = _begin_measure(device) if measures else 0
        part = _attempt(run, slice(done, done + at_once))
        if part is None:
            if at_once == 1:
                raise torch.OutOfMemoryError("one forecast alone does not fit into the accelerator's memory")
            size, measures = math.ceil(at_once / 2), False
            torch.cuda.empty_cache()
            continue
        parts.append(part)
        done += at_once
        if measures:
            size, measures = fitting(_measured(device, before) / at_once, _free(device)), False
    return torch.cat(parts)


def fitting(bytes_per_row: float, free: int) -> int:
    """Rows that fit into the share of `free` bytes that is ours."""
    return max(1, min(LARGEST_BATCH, int(MEMORY_SHARE * free / max(1.0, bytes_per_row))))


def _attempt(run: Callable[[slice], Tensor], rows: slice) -> Tensor | None:
    """None where memory ran out: what the failed run held is free again only once its exception is gone."""
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        return None


def _begin_measure(device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _measured(device: torch.device, before: int) -> int:
    """Bytes at the highest, above those at the beginning."""
    return torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> int:
    """Bytes that could be had: the driver's, and those that torch keeps without using them."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept
