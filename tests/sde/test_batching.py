"""Batches are as large as fits, and what is too large is cut."""

import pytest
import torch

from raypipe.sde import batching
from raypipe.sde.batching import CPU_BATCH, fitting, in_batches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Memory:
    """Runs rows 0, 1, ... where at most `most` fit at once; notes the sizes it was asked for."""

    def __init__(self, most=10**9):
        self.most, self.asked = most, []

    def __call__(self, rows):
        size = rows.stop - rows.start
        self.asked.append(size)
        if size > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.arange(rows.start, rows.stop)


def test_batches_of_the_size_asked_for():
    memory = Memory()
    assert in_batches(memory, 10, 4, CPU).tolist() == [*range(10)]
    assert memory.asked == [4, 4, 2]


def test_on_a_cpu_batches_are_small():
    memory = Memory()
    assert in_batches(memory, CPU_BATCH + 1, None, CPU).tolist() == [*range(CPU_BATCH + 1)]
    assert memory.asked == [CPU_BATCH, 1]


def test_batches_are_halved_until_they_fit():
    memory = Memory(most=3)
    assert in_batches(memory, 10, 8, CPU).tolist() == [*range(10)]
    assert memory.asked == [8, 4, 2, 2, 2, 2, 2]


def test_one_row_that_does_not_fit_is_an_error():
    memory = Memory(most=0)
    with pytest.raises(torch.OutOfMemoryError, match="a single forecast does not fit into the GPU memory"):
        in_batches(memory, 10, 4, CPU)
    assert memory.asked == [4, 2, 1]


def test_on_a_gpu_the_first_batch_says_how_many_fit(monkeypatch):
    """Stand-ins for the driver's counters: 10 bytes a forecast, 1500 free, of which our share is 1050."""
    monkeypatch.setattr(batching, "_begin_measure", lambda device: 500)
    monkeypatch.setattr(batching, "_measured", lambda device, before: 10 * batching.FIRST_BATCH)
    monkeypatch.setattr(batching, "_free", lambda device: 1500)
    memory = Memory()
    assert in_batches(memory, 200, None, CUDA).tolist() == [*range(200)]
    assert memory.asked == [batching.FIRST_BATCH, 105, 200 - 105 - batching.FIRST_BATCH]


def test_fitting_is_never_nothing_nor_without_end():
    assert fitting(1e12, 100) == 1
    assert fitting(0, 10**12) == batching.LARGEST_BATCH


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_real_gpu():
    """Rows of 4 MiB: results are those of the CPU, and the second batch is larger than the first."""
    asked = []

    def run(rows):
        asked.append(rows.stop - rows.start)
        work = (
            torch.ones(asked[-1], 1 << 20, device="cuda") * torch.arange(rows.start, rows.stop, device="cuda")[:, None]
        )
        return work.mean(1).cpu()

    assert in_batches(run, 1000, None, CUDA).tolist() == [*range(1000)]
    assert asked[0] == batching.FIRST_BATCH < asked[1]
