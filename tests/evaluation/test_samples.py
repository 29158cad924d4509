"""The forecasts that the report shows: random ones, and the worst, the median and the best by score."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import checkpoint
from raypipe.evaluation.combinations import Combination, CombinationScorer
from raypipe.evaluation.protocol import protocol_of
from raypipe.evaluation.samples import save_samples
from raypipe.forecast.film import read_case, read_sample
from raypipe.forecast.manifest import JOINT
from raypipe.models.components import build_component
from tests.evaluation.conftest import CHOSEN


def test_cases_are_chosen_by_score(data_with_best):
    """The scores are made up, so that the order is known; the frames are those of the windows with these scores."""
    count = data_with_best.experiment.evaluation.test_windows
    score = CombinationScorer(data_with_best, "test", count).score(CHOSEN, decode=False).score
    made_up = np.array([0.2, 0.9, 0.4, 0.1, 0.3])
    score = replace(score, crps=made_up[:, None].repeat(3, 1), reference=np.full((5, 3), 2.0))
    save_samples(data_with_best, score)
    folder = data_with_best.workspace.folder / "samples"
    assert len(list(folder.glob("sample-*.npz"))) == 6
    windows, shards = protocol_of(data_with_best)["windows"]["test"], data_with_best.frames("test")
    for name, number in (("worst", 1), ("median", 4), ("best", 3)):
        case = read_case(folder / "cases" / f"{name}.npz")
        assert (case.name, case.clip, case.start) == (name, windows[number]["clip"], windows[number]["start"])
        assert np.isclose(case.score, made_up[number] / 2) and case.windows == 5
        assert np.isclose(case.mean, score.ratio.value)
        assert [strip.label for strip in case.strips] == ["truth", "member 1", "member 2", "member 3"]
        with np.load(folder / "cases" / f"{name}.npz") as kept:
            true = shards.clip(shards.names.index(case.clip))[case.start : case.start + 5]
            np.testing.assert_array_equal(kept["truth"], true)


@pytest.fixture
def rival(data_with_best):
    """Flow matching with two trainings that take turns, as a search leaves them; untrained."""
    names, model = ("flow_matching-joint-00-s0", "flow_matching-joint-00-s1"), data_with_best.experiment.model
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        module = build_component("joint", model, data_with_best.channels, "flow_matching")
        meta = checkpoint.Meta(data_with_best.channels, component="joint", model=model, noise="flow_matching")
        checkpoint.save_component(data_with_best.workspace.run("joint", name), module, meta)
    return Combination(
        "flow_matching", None, JOINT, names[0], beta=1.0, steps=2, baseline="flow_matching", more_models=names[1:]
    )


def test_the_best_rival_forecasts_the_same_windows(data_with_best, rival):
    folder = data_with_best.workspace.folder / "samples"
    save_samples(data_with_best, None)
    alone = [dict(np.load(path)) for path in sorted(folder.glob("sample-*.npz"))]
    alone_film = read_sample(folder / "sample-0.npz")
    save_samples(data_with_best, None, rival)
    for kept, path in zip(alone, sorted(folder.glob("sample-*.npz")), strict=True):
        with np.load(path) as both:
            for name, value in kept.items():
                np.testing.assert_array_equal(value, both[name])
            assert both["rival"].shape == kept["prediction"].shape
            assert not np.array_equal(both["rival"], kept["prediction"])
            assert not np.array_equal(both["rival"][0], both["rival"][1])
    sample = read_sample(folder / "sample-0.npz")
    assert alone_film.rival is None and sample.rival == ("flow_matching", 2)
    assert sample.film != alone_film.film and sample.strips == alone_film.strips
