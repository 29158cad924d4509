"""One suite that every network passes, with every backbone: as a module, and in training on one rank or two."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raypipe.config import LOSSES, SCORES
from raypipe.data.batches import TrainBatch
from tests.models import ranks
from tests.models.small import ALL, BATCH, CHANNELS, HEIGHT, KINDS, WIDTH, awake, build, component_of, inputs, small

BOTH = pytest.mark.parametrize("time_input", [False, True])
EVERY_LOSS = pytest.mark.parametrize(
    ("kind", "loss"), [(kind, loss) for kind in KINDS for loss in LOSSES[component_of(kind)] or (None,)]
)


# ---- as modules


@ALL
@BOTH
def test_shapes_and_values(kind: str, time_input: bool) -> None:
    x, u = inputs()
    out = build(kind, time_input=time_input)(x, u)
    channels = 2 * CHANNELS if kind.startswith(("denoiser", "joint:additive")) else CHANNELS
    assert out.shape == (BATCH, channels, HEIGHT, WIDTH)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert not kind.startswith("diffusion") or (out > 0).all()
    assert not kind.startswith("joint:additive") or (out[:, CHANNELS:] > 0).all()


@ALL
@BOTH
def test_it_is_deterministic_and_dropout_acts_in_training_only(kind: str, time_input: bool) -> None:
    x, u = inputs()
    module = awake(build(kind, time_input=time_input, dropout=0.5))
    assert not torch.equal(module(x, u), module(x, u))
    module.eval()
    assert torch.equal(module(x, u), module(x, u))
    assert torch.equal(module(x, u), awake(build(kind, time_input=time_input, dropout=0.5)).eval()(x, u))


@ALL
@BOTH
@pytest.mark.parametrize("out_norm", ["ln", "bn"])
def test_gradients_reach_every_parameter(kind: str, time_input: bool, out_norm: str) -> None:
    x, u = inputs()
    module = awake(build(kind, time_input=time_input, out_norm=out_norm))
    module(x, u).square().sum().backward()
    lacking = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before a BatchNorm or of the keys cancels, but for rounding
    assert lacking == []


@ALL
@BOTH
def test_state_round_trip(kind: str, time_input: bool) -> None:
    x, u = inputs()
    module = build(kind, time_input=time_input).eval()
    other = build(kind, seed=9, time_input=time_input).eval()
    assert not torch.equal(module(x, u), other(x, u))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x, u), other(x, u))


@ALL
def test_states_of_a_batch_do_not_mix(kind: str) -> None:
    x, u = inputs()
    module = build(kind).eval()
    alone = torch.cat([module(x[i : i + 1], u[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(module(x, u), alone, rtol=1e-5, atol=1e-6)


@ALL
@BOTH
@pytest.mark.parametrize("size", [1.0, 25.0, 250.0])
def test_answers_are_finite_far_out(kind: str, time_input: bool, size: float) -> None:
    """Latents stay below 25 in a rollout; noise of s = 10 comes on top."""
    x, u = inputs()
    with torch.no_grad():
        out = build(kind, time_input=time_input).eval()(size * x, u)
    assert out.isfinite().all()
    if kind.startswith("diffusion"):
        low, high = small().logit_range
        assert math.exp(low) * 0.999 <= out.min() and out.max() <= math.exp(high) * 1.001


@ALL
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 16), (17, 23)])
def test_latents_may_have_any_size(kind: str, size: tuple[int, int]) -> None:
    x = torch.randn(2, 2 * CHANNELS, *size)
    assert awake(build(kind))(x, torch.tensor([0.0, 0.7])).shape[2:] == size


# ---- in training


def gradients(
    kind: str, loss: str | None, noise_std: float, scale: float, *, time_input: bool, step: int
) -> dict[str, Tensor]:
    """Those of one batch, by name; None would mean that a parameter took no part."""
    values = {"train.noise_std": noise_std, "train.loss": loss, "model.time_input": time_input}
    settings = ranks.experiment(kind, **values)
    module = awake(ranks.module_of(settings))
    data = ranks.windows(settings, 0, scale)
    batch = TrainBatch(data, torch.zeros(ranks.TOTAL, dtype=torch.long), ranks.TOTAL, 0, step)
    value = ranks.task_of(settings, module).loss(batch)
    assert value.isfinite()
    value.backward()
    return {name: p.grad for name, p in module.named_parameters()}  # type: ignore[misc]


BOTH_PHASES = pytest.mark.parametrize("step", [0, ranks.STEPS - 1])
"""A joint network is trained on its velocity in the first step, and on the score of its forecasts in the last."""


@EVERY_LOSS
@BOTH
@BOTH_PHASES
@pytest.mark.parametrize("noise_std", [0.0, 10.0])
@pytest.mark.parametrize("scale", [1.0, 25.0])
def test_losses_and_gradients_are_finite_at_the_extremes(
    kind: str, loss: str | None, time_input: bool, noise_std: float, scale: float, step: int
) -> None:
    found = gradients(kind, loss, noise_std, scale, time_input=time_input, step=step)
    lacking = [name for name, gradient in found.items() if gradient is None or not gradient.isfinite().all()]
    assert lacking == []


@EVERY_LOSS
@BOTH
@BOTH_PHASES
def test_every_loss_reaches_every_parameter(kind: str, loss: str | None, time_input: bool, step: int) -> None:
    found = gradients(kind, loss, 0.1, 1.0, time_input=time_input, step=step)
    # A forecast of one step a frame evaluates the network at u = 0, where the weights of u have no effect.
    scored = step > 0 and loss in SCORES
    unseen = ("time.weight", "time_input.weight") if scored else ()
    lacking = [n for n, gradient in found.items() if gradient is None or not gradient.any()]
    assert [name for name in lacking if not name.endswith(unseen or ("\0",))] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of what one rank alone and two ranks under DDP (gloo, processes of their own) made of every case."""
    root = tmp_path_factory.mktemp("ranks")
    (root / "alone").mkdir()
    (root / "together").mkdir()
    script, env = Path(ranks.__file__), os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    commands = [(0, 1, root / "alone"), (0, 2, root / "together"), (1, 2, root / "together")]
    processes = [
        subprocess.Popen([sys.executable, str(script), *map(str, command)], env=env, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]
    return root / "alone", root / "together"


@pytest.mark.parametrize("case", ranks.CASES, ids=lambda case: ranks.case_name(*case))
def test_two_ranks_train_what_one_trains(case: tuple[str, bool, int], trained: tuple[Path, Path]) -> None:
    """Also in parts (accumulate), without an exchange in between; the loss told is that of the global batch."""
    name = ranks.case_name(*case)
    alone = torch.load(trained[0] / f"{name}-0.pt", weights_only=True)
    for rank in range(2):
        together = torch.load(trained[1] / f"{name}-{rank}.pt", weights_only=True)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    whole = torch.load(trained[0] / f"{ranks.case_name(*case[:2], 1)}-0.pt", weights_only=True)
    torch.testing.assert_close(alone["loss"], whole["loss"], rtol=1e-5, atol=0)
