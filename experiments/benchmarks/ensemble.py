"""Speed of training several trials as a batched network: `python experiments/benchmarks/ensemble.py [--models 8]`.

Trials that differ only in noise level, loss and learning rate have the same architecture. Their parameters can be
stacked, and torch.func can train them in one call. Prints a JSON line:

ratio   time of a step of all models in sequence / time of one batched step; above 1, batching is faster
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.attention import SDPBackend, sdpa_kernel

from raypipe import cli, config
from raypipe.common.device import choose_device
from raypipe.models import attention
from raypipe.models.components import build_component

CHANNELS, SIDE = 4, 8
"""Channels, and height and width, of the demo's latents."""


def measure(models: int, batch: int, turns: int) -> dict[str, object]:
    """The JSON line. turns: number of timed steps of each kind; the median counts."""
    device, settings = choose_device(), config.Model()
    torch.manual_seed(0)
    networks = [build_component("flow", settings, CHANNELS).to(device) for _ in range(models)]
    x = torch.randn(models, batch, settings.num_input_frames * CHANNELS, SIDE, SIDE, device=device)
    u = torch.rand(models, batch, device=device)
    target = torch.randn(models, batch, CHANNELS, SIDE, SIDE, device=device)
    stacked, _ = stack_module_state(networks)
    skeleton = build_component("flow", settings, CHANNELS).to("meta")

    def one_by_one() -> list[float]:
        losses = []
        for network, *inputs in zip(networks, x, u, target, strict=True):
            loss = _loss(network, *inputs)
            loss.backward()
            losses.append(loss.item())
        return losses

    def loss_of(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return _loss(lambda *state: functional_call(skeleton, parameters, state), *inputs)

    def batched() -> list[float]:
        # vmap would run the convolution of attention.linear and the fused attention kernel model by model.
        with patch.object(attention, "linear", F.linear), sdpa_kernel(SDPBackend.MATH):
            losses = torch.func.vmap(loss_of)(stacked, x, u, target)
            losses.sum().backward()
        return list(losses.tolist())

    assert torch.allclose(torch.tensor(one_by_one()), torch.tensor(batched()), rtol=1e-4)
    times: dict[Callable[[], list[float]], list[float]] = {one_by_one: [], batched: []}
    for _ in range(turns):
        for step, taken in times.items():
            for parameter in (*stacked.values(), *(p for network in networks for p in network.parameters())):
                parameter.grad = None
            begin = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begin)
    apart, together = (statistics.median(taken) for taken in times.values())
    return {
        "name": "ensemble",
        "ratio": round(apart / together, 3),
        "against": "the same steps one model after the other",
        "models": models,
        "batch": batch,
        "device": device.type,
        "seconds": [round(apart, 4), round(together, 4)],
    }


def _loss(network: nn.Module | Callable[[Tensor, Tensor], Tensor], x: Tensor, u: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = (network(x, u) - target).square().mean()
    return loss


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", type=cli.positive, default=8, metavar="N", help="number of models (default: 8)")
    parser.add_argument(
        "--batch", type=cli.positive, default=16, metavar="B", help="windows per model and step (default: 16)"
    )
    parser.add_argument(
        "--turns", type=cli.positive, default=15, metavar="T", help="timed steps of each kind (default: 15)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(measure(args.models, args.batch, args.turns)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
