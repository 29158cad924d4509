"""The models of noise that ablations.py compares with those of raypipe."""

import pytest
import torch

from raypipe import config
from tests.scripts import load_script

noise_models = load_script("noise_models")

C, H, W, FIELDS = 2, 4, 4, 3


@pytest.mark.parametrize(("calls", "spread"), [(1, 0.0), (100, 0.4)])
def test_flow_matching_with_the_exact_velocity_samples_the_next_frame(calls, spread):
    """The movement is scale * N(0.5, 0.4^2); one call gives its mean."""
    mean, std, scale = 0.5, 0.4, 2.0

    def velocity(context, s, x):
        s = s[:, None, None, None]
        gain = s * std**2 / (s**2 * std**2 + (1 - s) ** 2)
        d = mean + gain * (x - s * mean)
        return (d - x) / (1 - s)

    context = torch.zeros(1, 2, C, H, W)
    unit = torch.full((C, 1, 1), scale)
    made = noise_models.sample_matching(velocity, unit, context, 2, members=300, calls=calls, seed=0)
    assert made.shape == (1, 300, 2, C, H, W)
    first = made[0, :, 0]
    assert first.mean().item() == pytest.approx(scale * mean, rel=0.02)
    assert first.std(0).mean().item() == pytest.approx(scale * spread, rel=0.05, abs=1e-5)


def test_noise_fields_add_to_white_noise():
    experiment = config.replace(config.Experiment(), **{"model.backbone": "conv", "model.inner_dim": 16})
    torch.manual_seed(0)
    module = noise_models.FieldNoise(experiment, C, (H, W), FIELDS).eval()
    x, u = torch.randn(5, experiment.model.num_input_frames * C, H, W), torch.zeros(5)
    xi = torch.randn(5, C, H, W)
    with torch.no_grad():
        f, g, a = module.heads(x, u)
        assert torch.equal(module(x, u), f)
        weights = [(xi * pattern).sum((1, 2, 3), keepdim=True) for pattern in module.patterns]
        expected = f + g * xi + sum(a[:, r] * weight for r, weight in enumerate(weights))
        torch.testing.assert_close(module(x, u, xi), expected)
    flat = module.patterns.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(FIELDS), atol=1e-5, rtol=0)
