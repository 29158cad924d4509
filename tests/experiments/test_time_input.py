"""The parts of experiments/time_input.py that are not the product's own."""

import pytest
import torch

from raypipe import config
from raypipe.models.components import build_component
from raypipe.sde.dynamics import ConstantDiffusion, Dynamics
from tests.scripts import load_script


@pytest.fixture(scope="module")
def study():
    return load_script("time_input")


@pytest.fixture
def flow():
    torch.manual_seed(0)
    return build_component("flow", config.Model(inner_dim=16, num_heads=2, time_input=False), 4).eval()


def test_held_dynamics_move_the_last_frame_alone(study, flow):
    x, constant = torch.randn(2, 16, 8, 8), ConstantDiffusion(torch.ones(4))
    drift = study.HeldDynamics(flow, diffusion=constant).interval(x).drift(x, 0.5)
    moving = Dynamics(flow, diffusion=constant).interval(x).drift(x, 0.5)
    assert (drift[:, :-4] == 0).all() and (moving[:, :-4] != 0).any()
    torch.testing.assert_close(drift[:, -4:], moving[:, -4:], rtol=0, atol=0)


def test_conditioned_norms_begin_as_plain_ones_and_learn_u(study, flow):
    x, u = torch.randn(2, 16, 8, 8), torch.tensor([0.0, 0.7])
    plain = flow(x, u)
    conditioned = study.Conditioned(flow, 16)
    torch.testing.assert_close(conditioned(x, u), plain, rtol=0, atol=0)
    for head in conditioned.heads:
        torch.nn.init.normal_(head.weight)
    changed = conditioned(x, u)
    assert not torch.allclose(changed, conditioned(x, u.flip(0)))


def test_embedded_tells_positions_apart(study):
    embedded = study.Embedded(8)(torch.tensor([[0.0], [0.5], [1.0]]))
    assert embedded.shape == (3, 8)
    assert torch.pdist(embedded).min() > 1e-3


def test_every_variant_has_its_own_name(study):
    assert len({variant.name for variant in study.VARIANTS}) == len(study.VARIANTS)
