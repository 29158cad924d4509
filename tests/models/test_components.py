"""What flow, denoiser and diffusion each are; what they have in common is in test_conformance.py."""

import pytest
import torch

from raypipe.models.components import Diffusion, build_component
from tests.models.small import ALL, build, inputs, small


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
