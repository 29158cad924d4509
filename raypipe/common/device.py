"""Where tensors live and in what precision: the one place that chooses."""

from contextlib import AbstractContextManager, nullcontext

import torch


def choose_device(index: int | None = None) -> torch.device:
    """The CUDA device of this process (number `index` of those visible), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", (index or 0) % torch.cuda.device_count())
    return torch.device("cpu")


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 where the accelerator has it; float32 on the CPU, where small networks gain nothing."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return nullcontext()


def train_backend(use_gpu: bool) -> str:
    """The process group's backend."""
    return "nccl" if use_gpu else "gloo"
