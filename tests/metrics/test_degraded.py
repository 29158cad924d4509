"""Which score sees what is wrong with an ensemble, on smooth random fields of which all is known.

The truth and the members of the reliable ensemble are drawn from one distribution, so every change makes it worse.
"""

import pytest
import torch
from torch.nn import functional

from raypipe.metrics.calibration import RankHistogram, rank_counts
from raypipe.metrics.ensemble import energy_score, fair_crps
from raypipe.metrics.variogram import variogram_score

WINDOWS, MEMBERS, SHAPE, LENGTH = 64, 8, (3, 32, 32), 3.0
SCORES = {"crps": lambda x, y: fair_crps(x, y).mean((1, 2, 3)), "energy": energy_score, "variogram": variogram_score}


def smooth(generator, *leading):
    """Gaussian random fields of unit variance, [*leading, 3, 32, 32], smooth over about `LENGTH` pixels."""
    frequency = torch.fft.fftfreq(SHAPE[1]).square()[:, None] + torch.fft.rfftfreq(SHAPE[2]).square()
    kernel = torch.exp(-0.5 * (2 * torch.pi * LENGTH) ** 2 * frequency)
    size = torch.fft.irfft2(kernel + 0j, s=SHAPE[1:]).square().sum().sqrt()
    return torch.fft.irfft2(torch.fft.rfft2(torch.randn(*leading, *SHAPE, generator=generator)) * kernel) / size


@pytest.fixture(scope="module")
def made():
    """(truth, members of a reliable ensemble, ensembles that are degraded)."""
    generator = torch.Generator().manual_seed(0)
    center = smooth(generator, WINDOWS)
    truth, members = (
        center + 0.5 * smooth(generator, WINDOWS),
        center[:, None] + 0.5 * smooth(generator, WINDOWS, MEMBERS),
    )
    blurred = functional.avg_pool2d(members.flatten(0, 2), 5, 1, 2, count_include_pad=False).view(members.shape)
    degraded = {
        "blur": blurred,
        "freeze": members[:, :1].expand(-1, MEMBERS, -1, -1, -1),
        "shuffled": members.gather(1, torch.rand(members.shape, generator=generator).argsort(1)),
        "specks": center[:, None] + 0.5 * torch.randn(members.shape, generator=generator),
        "shifted": members.roll(3, -1),
        "narrow": center[:, None] + 0.3 * (members - center[:, None]),
    }
    return truth, members, degraded


def worse(made, degraded, score):
    """By how many standard errors of the paired difference an ensemble scores worse than the reliable one."""
    truth, members, others = made
    gap = SCORES[score](others[degraded], truth) - SCORES[score](members, truth)
    return (gap.mean() / gap.std() * WINDOWS**0.5).item()


@pytest.mark.parametrize("degraded", ["blur", "freeze", "shifted", "narrow"])
@pytest.mark.parametrize("score", list(SCORES))
def test_every_score_sees_blur_a_frozen_ensemble_a_shift_and_a_small_spread(made, degraded, score):
    assert worse(made, degraded, score) > 5


def test_crps_is_blind_to_members_that_are_shuffled_pixel_by_pixel(made):
    """Each pixel keeps its members, so the CRPS and the ranks are the same, but a member is no field any more."""
    truth, members, others = made
    same = [fair_crps(x, truth) for x in (others["shuffled"], members)]
    torch.testing.assert_close(*same, atol=1e-6, rtol=0)
    assert torch.equal(*(rank_counts(x, truth) for x in (others["shuffled"], members)))
    assert worse(made, "shuffled", "energy") > 4
    assert worse(made, "shuffled", "variogram") > 30


def test_specks_of_equal_crps_are_seen_by_the_variogram_score(made):
    """Independent noise with the right distribution in each pixel; the energy score alone is hardly moved by it."""
    assert abs(worse(made, "specks", "crps")) < 4
    assert worse(made, "specks", "variogram") > 30
    assert worse(made, "specks", "variogram") > 5 * worse(made, "specks", "energy") > 0


def test_ranks_see_the_spread_but_not_the_shape(made):
    truth, members, others = made
    index = {
        name: RankHistogram.of([rank_counts(x, truth)]).reliability_index
        for name, x in {"reliable": members, **others}.items()
    }
    assert index["narrow"] > 0.4 > 0.1 > max(index["reliable"], index["specks"])
    assert index["shuffled"] == index["reliable"]
