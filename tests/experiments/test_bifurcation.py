"""The method in two dimensions: with noise the forecast forks as the data do, without it cannot."""

import json
import math

import pytest
import torch

from tests.scripts import load_script


@pytest.fixture(scope="module")
def bifurcation():
    return load_script("bifurcation")


def test_the_data_turn_after_45_steps_by_30_degrees(bifurcation):
    data = bifurcation.trajectories().double()
    steps = data.diff(dim=1)
    assert data.shape == (100, 100, 2)
    torch.testing.assert_close(steps.norm(dim=-1), torch.full((100, 99), 0.1, dtype=torch.float64), atol=1e-6, rtol=0)
    angles = torch.atan2(steps[..., 1], steps[..., 0]) * 180 / math.pi
    assert angles[:, :45].abs().max() < 1e-3
    assert (angles[:50, 45:] - 30).abs().max() < 1e-2 and (angles[50:, 45:] + 30).abs().max() < 1e-2


def test_an_end_counts_as_near_within_a_tenth_of_the_turn(bifurcation):
    left, right = bifurcation.trajectories()[[0, -1], -1]
    off = torch.tensor([0.0, 1.0])
    judged = bifurcation.judge(torch.stack([left, left + 0.53 * off, right, right - 0.55 * off]))
    assert (judged.left, judged.near) == (0.5, 0.75)


@pytest.mark.slow
@pytest.mark.long
def test_noise_makes_the_forecast_fork(bifurcation, tmp_path, capsys):
    assert bifurcation.main(["--seeds", "1", "--storage", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[0])
    assert result == json.loads((tmp_path / "bifurcation.json").read_text())
    assert 0.35 <= result["left"][0] <= 0.65
    assert result["near"][0] >= 0.9
    assert result["flow_alone_left"][0] in (0, 1)
    assert (tmp_path / "bifurcation.png").stat().st_size > 10_000
