"""One suite that flow, denoiser and diffusion all pass: as modules, and in training on one rank or two."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raypipe.config import LOSSES
from raypipe.data.batches import TrainBatch
from raypipe.models.components import build_component
from tests.models import ranks
from tests.models.small import ALL, BATCH, CHANNELS, HEIGHT, WIDTH, build, inputs, small

BOTH = pytest.mark.parametrize("time_input", [False, True])
EVERY_LOSS = pytest.mark.parametrize(
    ("component", "loss"), [(c, loss) for c, losses in LOSSES.items() for loss in losses or (None,)]
)


# ---- as modules


@ALL
@BOTH
def test_shapes_and_values(component: str, time_input: bool) -> None:
    x, u = inputs()
    out = build(component, time_input=time_input)(x, u)
    channels = 2 * CHANNELS if component == "denoiser" else CHANNELS
    assert out.shape == (BATCH, channels, HEIGHT, WIDTH)
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert component != "diffusion" or (out > 0).all()


@ALL
@BOTH
def test_it_is_deterministic_and_dropout_acts_in_training_only(component: str, time_input: bool) -> None:
    x, u = inputs()
    module = build(component, time_input=time_input, dropout=0.5)
    assert not torch.equal(module(x, u), module(x, u))
    module.eval()
    assert torch.equal(module(x, u), module(x, u))
    assert torch.equal(module(x, u), build(component, time_input=time_input, dropout=0.5).eval()(x, u))


@ALL
@BOTH
@pytest.mark.parametrize("out_norm", ["ln", "bn"])
def test_gradients_reach_every_parameter(component: str, time_input: bool, out_norm: str) -> None:
    x, u = inputs()
    module = build(component, time_input=time_input, out_norm=out_norm)
    module(x, u).square().sum().backward()
    lacking = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before a BatchNorm or of the keys cancels, but for rounding
    assert lacking == []


@ALL
@BOTH
def test_state_round_trip(component: str, time_input: bool) -> None:
    x, u = inputs()
    module = build(component, time_input=time_input).eval()
    torch.manual_seed(9)
    other = build_component(component, small(time_input=time_input), CHANNELS).eval()
    assert not torch.equal(module(x, u), other(x, u))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x, u), other(x, u))


@ALL
def test_states_of_a_batch_do_not_mix(component: str) -> None:
    x, u = inputs()
    module = build(component).eval()
    alone = torch.cat([module(x[i : i + 1], u[i : i + 1]) for i in range(BATCH)])
    torch.testing.assert_close(module(x, u), alone, rtol=1e-5, atol=1e-6)


@ALL
@BOTH
@pytest.mark.parametrize("size", [1.0, 25.0, 250.0])
def test_answers_are_finite_far_out(component: str, time_input: bool, size: float) -> None:
    """Latents stay below 25 in a rollout; noise of s = 10 comes on top."""
    x, u = inputs()
    with torch.no_grad():
        out = build(component, time_input=time_input).eval()(size * x, u)
    assert out.isfinite().all()
    if component == "diffusion":
        low, high = small().logit_range
        assert math.exp(low) * 0.999 <= out.min() and out.max() <= math.exp(high) * 1.001


# ---- in training


def gradients(
    component: str, loss: str | None, noise_std: float, scale: float, *, time_input: bool
) -> dict[str, Tensor]:
    """Those of one batch, by name; None would mean that a parameter took no part."""
    values = {"train.noise_std": noise_std, "train.loss": loss, "model.time_input": time_input}
    settings = ranks.experiment(component, **values)
    module = build_component(component, settings.model, CHANNELS)
    batch = TrainBatch(ranks.windows(0, scale), torch.zeros(ranks.TOTAL, dtype=torch.long), ranks.TOTAL, 0, 0)
    value = ranks.task_of(settings, module).loss(batch)
    assert value.isfinite()
    value.backward()
    return {name: p.grad for name, p in module.named_parameters()}  # type: ignore[misc]


@EVERY_LOSS
@BOTH
@pytest.mark.parametrize("noise_std", [0.0, 10.0])
@pytest.mark.parametrize("scale", [1.0, 25.0])
def test_losses_and_gradients_are_finite_at_the_extremes(
    component: str, loss: str | None, time_input: bool, noise_std: float, scale: float
) -> None:
    found = gradients(component, loss, noise_std, scale, time_input=time_input)
    lacking = [name for name, gradient in found.items() if gradient is None or not gradient.isfinite().all()]
    assert lacking == []


@EVERY_LOSS
@BOTH
def test_every_loss_reaches_every_parameter(component: str, loss: str | None, time_input: bool) -> None:
    found = gradients(component, loss, 0.1, 1.0, time_input=time_input)
    assert [name for name, gradient in found.items() if gradient is None or not gradient.any()] == []


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
