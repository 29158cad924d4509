"""The choice of device, precision and communication backend."""

from contextlib import AbstractContextManager, nullcontext

import torch


def choose_device(index: int | None = None) -> torch.device:
    """The visible CUDA device with this index (None: 0; wraps around), or the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", (index or 0) % torch.cuda.device_count())
    return torch.device("cpu")


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bfloat16 on GPUs that support it; otherwise float32, as small networks gain nothing on a CPU."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def train_backend(use_gpu: bool) -> str:
    """The communication backend of torch.distributed for training on GPUs or CPUs."""
    return "nccl" if use_gpu else "gloo"
