"""Compiled networks give the forecasts that they give as they are, from one graph for all models and batches."""

import logging

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from raypipe import config
from raypipe.models.components import build_component
from raypipe.sde.compiled import CompiledEvaluate
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from raypipe.sde.rollout import rollout
from raypipe.sde.solvers import SOLVERS

K, C, SIZE = 2, 3, 4
NAMES = sorted(SOLVERS)


class Toy(nn.Module):
    """A field of one convolution, quick to compile."""

    def __init__(self, channels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(K * C, channels, 3, padding=1)

    def forward(self, x, u):
        return 0.3 * torch.tanh(self.conv(x)) + 0.1 * u[:, None, None, None]


def toys(seed: int, compiled: bool) -> Dynamics:
    fields = Toy(C, seed), Toy(K * C, seed + 1), Toy(C, seed + 2)
    dynamics = Dynamics(*fields, alpha=1.2, beta=0.8)
    return Dynamics(*fields, alpha=1.2, beta=0.8, evaluate=CompiledEvaluate()) if compiled else dynamics


@pytest.fixture(scope="module", autouse=True)
def fresh():
    torch.compiler.reset()


@pytest.fixture
def context():
    return torch.randn(5, K, C, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("solver", NAMES)
def test_forecasts_are_the_eager_ones_within_rounding(context, solver):
    settings = {"steps": 2, "members": 3, "seed": 1, "interpolate": 2, "solver": solver}
    eager, compiled = (rollout(toys(0, compiled), context, 3, **settings) for compiled in (False, True))
    torch.testing.assert_close(compiled, eager, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", NAMES)
def test_whole_frames_are_bit_for_bit_the_same_with_those_in_between(context, solver):
    settings = {"steps": 3, "members": 2, "seed": 1, "solver": solver}
    plain, dense = (rollout(toys(0, True), context, 3, interpolate=k, **settings) for k in (1, 4))
    assert torch.equal(dense[:, :, 3::4], plain)


@pytest.mark.parametrize("solver", NAMES)
def test_in_two_parts_it_is_bit_for_bit_what_it_is_in_one(context, solver):
    settings = {"steps": 2, "members": 3, "seed": 1, "solver": solver}
    whole, first = (rollout(toys(0, True), context, frames, **settings) for frames in (5, 3))
    second = rollout(toys(0, True), first[:, :, -K:], 2, first_frame=3, **settings)
    assert torch.equal(torch.cat([first, second], dim=2), whole)


def test_batches_of_every_size_and_other_models_share_one_graph(context):
    before = graphs()
    for seed, batch_size in ((0, None), (3, 4), (6, 7), (9, 1)):
        settings = {"steps": 2, "members": 3, "seed": 1}
        eager = rollout(toys(seed, False), context, 2, **settings)
        compiled = rollout(toys(seed, True), context, 2, batch_size=batch_size, **settings)
        torch.testing.assert_close(compiled, eager, rtol=0, atol=2e-6)
    assert graphs() - before <= 1  # none, where a test before this one has compiled it


def test_another_constant_is_not_compiled_anew(context):
    flow, before = Toy(C, 0), graphs()
    forecasts = [
        rollout(Dynamics(flow, None, g, beta=beta, evaluate=evaluate), context, 1, steps=1, members=2, seed=0)
        for evaluate in [CompiledEvaluate()]
        for g in (ConstantDiffusion(torch.full((C,), 0.5)), ConstantDiffusion(torch.full((C,), 0.25)))
        for beta in (1.0, 2.0)
    ]
    assert graphs() - before == 1
    torch.testing.assert_close(forecasts[0], forecasts[3])
    assert not torch.equal(forecasts[0], forecasts[1])


@pytest.mark.slow
def test_the_components_own_network(context):
    """The transformer of flow, denoiser and diffusion, its attention, norms and convolutions in one graph."""
    model = config.Model(num_input_frames=K, inner_dim=16)
    torch.manual_seed(0)
    flow, constant, before = build_component("flow", model, C).eval(), ConstantDiffusion(torch.ones(C)), graphs()
    settings = {"steps": 2, "members": 2, "seed": 1}
    eager = rollout(Dynamics(flow, None, constant), context, 2, **settings)
    compiled = rollout(Dynamics(flow, None, constant, evaluate=CompiledEvaluate()), context, 2, **settings)
    assert graphs() - before == 1
    torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-5)


def test_without_a_compiler_it_says_so_once_and_goes_on(context, caplog, monkeypatch, tmp_path):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where no earlier run has left what is needed
    flow = Toy(C, 0)
    alone = lambda x, u: flow(x, u).sin()  # noqa: E731  # a graph of its own
    compiled = rollout(Dynamics(alone, evaluate=CompiledEvaluate()), context, 2, steps=2, members=1, seed=0)
    assert torch.equal(compiled, rollout(Dynamics(alone), context, 2, steps=2, members=1, seed=0))
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "torch.compile failed, so the networks run uncompiled: " in warnings[0] and "\n" not in warnings[0]
