"""Which score sees what is wrong with a clip: of the demo's clips, degraded by a little and by more.

FVD, LPIPS and JEDi are not among the scores, as no package has their weights. `tests/metrics/test_degraded.py` asks the
same of ensembles of fields.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from raypipe.data.demo import make_clip
from raypipe.data.frames import to_float
from raypipe.evaluation.perceptual.efflite0 import clip_features, distance, load_efflite0, weights_file
from raypipe.metrics import frames
from raypipe.metrics.ensemble import energy_score, fair_crps
from raypipe.metrics.frechet import frechet_distance
from raypipe.metrics.variogram import variogram_score

CLIPS, FRAMES, FEW = 16, 8, 4
SIZE = 64


def blur(clips, std):
    reach = int(3 * std) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * std**2))
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    x = functional.pad(clips.reshape(-1, 1, SIZE, SIZE), [reach] * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(x, kernel), kernel.mT).view(clips.shape)


def noise(clips, std):
    drawn = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return (clips + std * drawn).clamp(-1, 1)


DEGRADED = {
    "blur": (lambda c: blur(c[:, 1:9], 0.7), lambda c: blur(c[:, 1:9], 1.4)),
    "noise": (lambda c: noise(c[:, 1:9], 0.02), lambda c: noise(c[:, 1:9], 0.2)),
    "freeze": (lambda c: c[:, [1, 2, 3, 4, 5, 5, 5, 5]], lambda c: c[:, [0] * 8]),
    "shuffled frames": (lambda c: c[:, [2, 1, 4, 3, 6, 5, 8, 7]], lambda c: c[:, [6, 3, 8, 1, 4, 7, 2, 5]]),
    "double speed": (lambda c: c[:, [1, 2, 3, 4, 5, 7, 9, 11]], lambda c: c[:, 2:18:2]),
    "half speed": (lambda c: c[:, [1, 2, 3, 4, 5, 5, 6, 6]], lambda c: c[:, [0, 1, 1, 2, 2, 3, 3, 4]]),
    "backwards": (lambda c: c[:, [1, 2, 3, 4, 8, 7, 6, 5]], lambda c: c[:, 1:9].flip(1)),
}
"""Clips of frames 1 to 8, degraded by a little and by more."""


class Judge:
    """All scores of clips [n, 8, 3, 64, 64] beside the true ones, of which 0 is the best and larger ones are worse."""

    def __init__(self):
        made = [make_clip(np.random.default_rng(seed), 18, SIZE, 0.03) for seed in range(2 * CLIPS)]
        self.clips, self.others = to_float(torch.from_numpy(np.stack(made))).split(CLIPS)
        self.true = self.clips[:, 1:9]
        self.network = load_efflite0(weights_file())
        self.layers = self.look(self.true)

    @torch.no_grad()
    def look(self, clips):
        return [self.network(clip) for clip in clips]

    def frechet(self, layers):
        return frechet_distance(*(torch.stack([clip_features(x) for x in found]) for found in (layers, self.layers)))

    def scores(self, clips):
        layers = self.look(clips)
        pairs = clips[:FEW].flatten(0, 1)[:, None], self.true[:FEW].flatten(0, 1)
        return {
            "crps": fair_crps(*pairs).mean().item(),
            "energy": energy_score(*pairs).mean().item(),
            "variogram": variogram_score(*pairs).mean().item(),
            "psnr": -frames.psnr(clips, self.true).clamp(max=60).mean().item(),
            "ssim": 1 - frames.ssim(clips, self.true).mean().item(),
            "efflite0_distance": np.mean([distance(*p).mean().item() for p in zip(layers, self.layers, strict=True)]),
            "efflite0_frechet": self.frechet(layers),
        }


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.mark.parametrize("name", [name for name in DEGRADED if name != "backwards"])
def test_every_score_sees_it_and_more_of_it(judge, name):
    best = judge.scores(judge.true)
    less, more = (judge.scores(degrade(judge.clips)) for degrade in DEGRADED[name])
    for score, value in best.items():
        assert value < less[score] < more[score], score
    assert best["efflite0_distance"] < 1e-5 and best["efflite0_frechet"] < 1e-3


def test_the_frechet_distance_of_efflite0_is_blind_to_clips_played_backwards(judge):
    """All the others compare each frame with the true one of its time."""
    best, more = judge.scores(judge.true), judge.scores(DEGRADED["backwards"][1](judge.clips))
    assert more.pop("efflite0_frechet") < 1e-3
    assert all(value > best[score] for score, value in more.items())


def test_the_frechet_distance_of_efflite0_is_blind_to_clips_of_other_windows(judge):
    """It compares sets of clips; so its floor is that of other clips, not 0."""
    best, other = judge.scores(judge.true), judge.scores(judge.true.roll(1, 0))
    assert other.pop("efflite0_frechet") < 1e-3
    assert all(value > best[score] for score, value in other.items())
    floor = judge.frechet(judge.look(judge.others[:, 1:9]))
    worse = [judge.frechet(judge.look(DEGRADED[name][1](judge.others))) for name in DEGRADED if name != "backwards"]
    assert 0 < floor < min(worse)


def test_specks_of_equal_crps_are_seen_by_ssim_and_efflite0_and_not_by_crps_and_psnr(judge):
    """Members that are true clips, moved by a few pixels, and the same with the members of each pixel exchanged."""
    shifts = [(3, 1), (-2, 3), (-3, -2), (1, -3)]
    members = torch.stack([judge.true.roll(shift, (-2, -1)) for shift in shifts], 1)
    order = torch.rand(members.shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    specks = members.gather(1, order)
    crps = [fair_crps(ensemble, judge.true).mean().item() for ensemble in (members, specks)]
    assert crps[1] == pytest.approx(crps[0], rel=1e-5)
    whole, speckled = judge.scores(members[:, 0]), judge.scores(specks[:, 0])
    assert abs(speckled["psnr"] - whole["psnr"]) < 0.5
    for score in ("ssim", "variogram", "efflite0_distance", "efflite0_frechet"):
        assert speckled[score] > 1.3 * whole[score], score
