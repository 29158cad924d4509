"""One conformance suite for flow, denoiser and diffusion."""

import pytest
import torch
from torch import Tensor, nn

from raypipe.config import COMPONENTS, Model
from raypipe.models.components import Diffusion, build_component

CHANNELS, HEIGHT, WIDTH, BATCH = 3, 4, 6, 2
ALL = pytest.mark.parametrize("component", COMPONENTS)
BOTH = pytest.mark.parametrize("time_input", [False, True])


def small(**values: object) -> Model:
    return Model(**{"num_input_frames": 2, "inner_dim": 16, "num_heads": 2, **values})  # type: ignore[arg-type]


def build(component: str, **values: object) -> nn.Module:
    torch.manual_seed(0)
    return build_component(component, small(**values), CHANNELS)


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 2 * CHANNELS, HEIGHT, WIDTH, generator=generator), torch.tensor([0.0, 0.7])


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
def test_time_is_seen_only_where_it_should_be(component: str) -> None:
    x, u = inputs()
    blind = build(component, time_input=False)
    assert torch.equal(blind(x, u), blind(x, None))
    seeing = build(component, time_input=True)
    if component == "denoiser":
        assert torch.equal(seeing(x, u), seeing(x, None))
    else:
        assert not torch.equal(seeing(x, u), seeing(x, 1 - u))
        for bad in (None, u[:, None], u[:1]):
            with pytest.raises(ValueError, match=r"^u: .*one value per state"):
                seeing(x, bad)


def test_diffusion_obeys_its_formula_and_range() -> None:
    x, u = inputs()
    diffusion = build("diffusion", logit_range=(-2.0, 0.5))
    assert isinstance(diffusion, Diffusion)
    raw = diffusion.raw(x, u)
    torch.testing.assert_close(diffusion.log_g(x, u), -2.0 + (raw.tanh() + 1) / 2 * 2.5)
    torch.testing.assert_close(diffusion(x, u), diffusion.log_g(x, u).exp())
    with torch.no_grad():
        diffusion.network.project_out[-1].bias.copy_(torch.tensor([-50.0, 0.0, 50.0]))
    log_g = diffusion.log_g(x, u)
    torch.testing.assert_close(log_g[:, 0], torch.full_like(log_g[:, 0], -2.0))
    torch.testing.assert_close(log_g[:, 2], torch.full_like(log_g[:, 2], 0.5))


@pytest.mark.parametrize(
    ("component", "channels", "message"),
    [
        ("drift", 4, "component: must be one of flow, denoiser, diffusion, not 'drift'"),
        ("flow", 0, "latent_channels: "),
    ],
)
def test_bad_arguments_are_named(component: str, channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_component(component, small(), channels)
