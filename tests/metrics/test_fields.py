"""Scores of whole fields over all windows, and those of decoded frames."""

import pytest
import torch

from raypipe.metrics.calibration import rank_counts
from raypipe.metrics.ensemble import energy_score
from raypipe.metrics.fields import score_fields
from raypipe.metrics.pixels import pixels_of, score_frames
from raypipe.metrics.variogram import variogram_score


def drawn(members, shape=(3, 12, 12), windows=4, horizon=2):
    generator = torch.Generator().manual_seed(members)
    truth = torch.randn(windows, horizon, *shape, generator=generator)
    last = torch.randn(windows, *shape, generator=generator)
    return torch.randn(windows, members, horizon, *shape, generator=generator), truth, last


def test_ratios_are_of_means_over_all_windows():
    members, truth, last = drawn(5)
    found = score_fields(list(members), truth, last)
    still = last[:, None, None].expand(-1, 1, 2, -1, -1, -1)
    for score, ratio in ((energy_score, found.energy_ratio), (variogram_score, found.variogram_ratio)):
        own, persistence = (
            score(x.transpose(1, 2).flatten(0, 1), truth.flatten(0, 1)).mean().item() for x in (members, still)
        )
        assert ratio == pytest.approx(own / persistence, rel=1e-5)
    counts = rank_counts(members, truth)
    assert found.ranks.frequencies == pytest.approx((counts / counts.sum()).tolist())


def test_persistence_has_ratio_1_and_the_truth_0():
    _, truth, last = drawn(1)
    still, perfect = (
        score_fields(list(last[:, None, None]), truth, last),
        score_fields(list(truth[:, None]), truth, last),
    )
    assert (still.energy_ratio, still.variogram_ratio) == pytest.approx((1, 1))
    assert perfect.variogram_ratio == 0 and perfect.energy_ratio == pytest.approx(0, abs=1e-3)
    assert perfect.ranks.frequencies == pytest.approx((0.5, 0.5))  # ties


def test_frames_get_the_scores_of_fields():
    members, truth, last = drawn(4)
    windows = [score_frames(*window) for window in zip(members, truth, last, strict=True)]
    pixels, fields = pixels_of(windows, bodies=False), score_fields(list(members), truth, last)
    assert pixels.energy_ratio == pytest.approx(fields.energy_ratio)
    assert (pixels.variogram_ratio, pixels.ranks) == (fields.variogram_ratio, fields.ranks)


def test_frames_that_are_the_same_at_all_steps_are_given_once():
    members, truth, last = drawn(3)
    once = [score_frames(m[:, :1], t, x) for m, t, x in zip(members, truth, last, strict=True)]
    often = [
        score_frames(m[:, :1].expand(-1, 2, -1, -1, -1), t, x) for m, t, x in zip(members, truth, last, strict=True)
    ]
    found, expected = (pixels_of(windows, bodies=False) for windows in (once, often))
    assert found.ranks == expected.ranks
    for name in ("crps_ratio", "energy_ratio", "variogram_ratio", "psnr", "ssim"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-5), name
