"""What flow, denoiser and diffusion each are; what they have in common is in test_conformance.py."""

import pytest
import torch

from raypipe.models.components import Diffusion, build_component
from tests.models.small import ALL, CHANNELS, awake, build, inputs, small


@ALL
def test_time_is_seen_only_where_it_should_be(kind: str) -> None:
    x, u = inputs()
    blind = awake(build(kind, time_input=False))
    assert torch.equal(blind(x, u), blind(x, None))
    seeing = awake(build(kind, time_input=True))
    if kind.startswith("denoiser"):
        assert torch.equal(seeing(x, u), seeing(x, None))
    else:
        assert not torch.equal(seeing(x, u), seeing(x, 1 - u))
        for bad in (None, u[:, None], u[:1]):
            with pytest.raises(ValueError, match=r"^u: .*one value per state"):
                seeing(x, bad)


def test_diffusion_obeys_its_formula_and_range() -> None:
    x, u = inputs()
    diffusion = build("diffusion@transformer", logit_range=(-2.0, 0.5))
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
        ("drift", 4, "component: must be one of flow, denoiser, diffusion, joint, not 'drift'"),
        ("flow", 0, "latent_channels: "),
    ],
)
def test_bad_arguments_are_named(component: str, channels: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_component(component, small(), channels)


@pytest.mark.parametrize("backbone", ["transformer", "conv"])
def test_noise_enters_a_joint_network_as_its_kind_says(backbone: str) -> None:
    x, u = inputs()
    xi = torch.randn(len(x), CHANNELS, *x.shape[2:])
    additive, seen = (awake(build(f"joint:{noise}@{backbone}")).eval() for noise in ("additive", "input"))
    assert torch.equal(additive(x, u), additive(x, u, xi))
    assert not torch.equal(seen(x, u), seen(x, u, xi))
    assert torch.equal(seen(x, u), seen(x, u, torch.zeros_like(xi)))
    assert torch.equal(seen(x, u, xi), seen(x, u, xi))
