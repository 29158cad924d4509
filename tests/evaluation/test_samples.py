"""The forecasts that the report shows: random ones, and the worst, the median and the best by score."""

from dataclasses import replace

import numpy as np

from raypipe.evaluation.combinations import CombinationScorer
from raypipe.evaluation.protocol import protocol_of
from raypipe.evaluation.samples import save_samples
from raypipe.forecast.film import read_case
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
