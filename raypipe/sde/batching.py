"""Run many forecasts in batches, with a batch size chosen to fit the memory of the device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

CPU_BATCH = 64
"""Batch size on a CPU. Larger batches do not fit its caches and are slower (experiments/benchmarks/sampling.py)."""
FIRST_BATCH = 64
"""Size of the first batch on a GPU, which measures the memory per forecast."""
LARGEST_BATCH = 8192
"""Upper limit on the batch size on a GPU."""
MEMORY_SHARE = 0.7
"""Fraction of the free GPU memory to use. The rest is a reserve for fragmentation and other processes."""


def in_batches(run: Callable[[slice], Tensor], rows: int, batch_size: int | None, device: torch.device) -> Tensor:
    """Call `run` on consecutive slices of range(rows) and concatenate the results along the first dimension.

    batch_size: largest number of rows per call. None: 64 on a CPU; on a GPU, chosen from the peak memory of the first
    batch. A batch that runs out of memory is tried again with half as many rows. Raises torch.OutOfMemoryError if a
    single row does not fit.
    """
    measure = batch_size is None and device.type == "cuda"
    size = batch_size or (FIRST_BATCH if measure else CPU_BATCH)
    parts: list[Tensor] = []
    done = 0
    while done < rows:
        count = min(size, rows - done)
        before = _begin_measure(device) if measure else 0
        part = _attempt(run, slice(done, done + count))
        if part is None:
            if count == 1:
                raise torch.OutOfMemoryError(
                    "a single forecast does not fit into the GPU memory; free memory on the GPU or use a smaller model"
                )
            size, measure = math.ceil(count / 2), False
            torch.cuda.empty_cache()
            continue
        parts.append(part)
        done += count
        if measure:
            size, measure = fitting(_measured(device, before) / count, _free(device)), False
    return torch.cat(parts)


def fitting(bytes_per_row: float, free: int) -> int:
    """Number of rows that fit into MEMORY_SHARE of `free` bytes, between 1 and LARGEST_BATCH."""
    return max(1, min(LARGEST_BATCH, int(MEMORY_SHARE * free / max(1.0, bytes_per_row))))


def _attempt(run: Callable[[slice], Tensor], rows: slice) -> Tensor | None:
    """The result of `run`, or None if it ran out of memory.

    This is a separate function because the exception keeps the tensors of the failed run alive until the function
    returns.
    """
    try:
        return run(rows)
    except torch.OutOfMemoryError:
        return None


def _begin_measure(device: torch.device) -> int:
    """Reset the peak memory statistics and return the bytes that are allocated now."""
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _measured(device: torch.device, before: int) -> int:
    """Peak bytes allocated since `_begin_measure`, minus the bytes that were allocated then (`before`)."""
    return torch.cuda.max_memory_allocated(device) - before


def _free(device: torch.device) -> int:
    """Bytes available to this process: free on the device, or reserved by torch's allocator but unused."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + unused
