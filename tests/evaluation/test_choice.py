"""Which finalist is chosen, and what is said where the last frame wins."""

import math
from types import SimpleNamespace

import pytest

from raypipe.evaluation.choice import against_rivals, choose, loses, verdict
from raypipe.forecast.ceiling import Ceiling, Reached

SCORES = {
    "a": (0.50, 1.10),  # best in latents, but worse in pixels than the last frame
    "b": (0.60, 0.80),
    "c": (0.90, 0.75),
    "broken": (math.nan, None),
}


def row_of(name):
    latents, pixels = SCORES[name]
    return SimpleNamespace(crps_ratio=latents, crps_ratio_pixels=pixels)


@pytest.mark.parametrize(("by", "best"), [("latents", "a"), ("pixels", "c"), ("both", "b")])
def test_the_choice(by, best):
    assert choose(["broken", "a", "c", "b"], row_of, by) == best


def test_where_all_lose_to_the_last_frame_the_product_decides():
    scores = {"a": (0.9, 1.3), "b": (0.6, 1.5)}
    rows = {n: SimpleNamespace(crps_ratio=x, crps_ratio_pixels=y) for n, (x, y) in scores.items()}
    assert choose(["a", "b"], rows.get, "both") == "b"


def row(split, latents, pixels, chosen=True, psnr=20.0):
    baseline = None if chosen else "persistence"
    scores = {"crps_ratio": latents, "crps_ratio_pixels": pixels, "psnr": psnr}
    return {"split": split, "chosen": chosen, "baseline": baseline, **scores}


def ceiling(ratio):
    still, best = Reached(1.0, 20.0, 0.9), Reached(ratio, 21.0, 0.8)
    return Ceiling("a", 8, still, {"plain": best}, "plain", 25.0)


def test_nothing_is_said_of_a_forecast_that_beats_the_last_frame():
    assert verdict([row("validation", 0.5, 0.9), row("test", 0.5, 0.99)], ceiling(0.4)) is None
    assert verdict([row("validation", 0.5, 1.2, chosen=False)], None) is None
    assert not loses(row("test", 0.5, None)) and loses(row("test", 0.5, math.nan)) and loses(row("test", 0.5, 1.0))


def test_the_last_frame_wins_and_the_sentence_says_why():
    lost = [row("validation", 0.65, 2.16), row("test", 0.65, 2.2)]
    said = verdict(lost, ceiling(1.39))
    assert said.startswith("nothing beat the last frame") and "2.160" in said
    assert "the best forecast on validation is no better" in said
    assert "even perfect latents would score 1.390" in said
    assert "latents are not forecast better" in verdict([row("validation", 1.06, 1.2)], ceiling(0.7))
    assert "less than what the autoencoder loses" in verdict([row("validation", 0.8, 1.2)], ceiling(0.7))
    tested = verdict([row("validation", 0.8, 0.9), row("test", 0.8, 1.1)], None)
    assert "the best forecast on test is no better" in tested and "1.100" in tested


@pytest.mark.parametrize(("psnr", "said"), [(18.4, True), (21.7, False), (22.0, False)])
def test_members_farther_from_the_truth_than_the_last_frame_are_named(psnr, said):
    rows = [row("test", 0.88, 0.887, psnr=psnr), row("test", 1.0, 1.0, chosen=False, psnr=21.7)]
    found = verdict([*rows, row("validation", 0.9, 0.95, psnr=10.0)], None)
    expected = (
        "on test, the ensemble beats the last frame (CRPS ratio in pixels 0.887), "
        "but its single members do not: PSNR 18.4 dB, of the last frame 21.7"
    )
    assert found == (expected if said else None)


def rival(name, calls, gap, se=0.004, split="test"):
    row = {"split": split, "baseline": name, "chosen": False, "nfe_per_frame": calls}
    return row | {"behind_chosen": gap, "behind_chosen_se": se}


def best(calls=1, split="test"):
    return rival(None, calls, 0.0, 0.0, split) | {"chosen": True}


def test_the_chosen_one_is_compared_with_the_best_rival_at_its_cost_and_at_a_higher_one():
    rows = [best(), rival("foellmer", 1, 0.09), rival("flow_matching", 1, 0.067), rival("foellmer", 4, -0.003)]
    assert against_rivals(rows) == (
        "on test, with 1 network evaluation a frame, the chosen combination is better than the best rival, flow "
        "matching, by 0.067 ± 0.004; at a higher cost, it is as good as the best rival, the Foellmer process with 4: "
        "-0.003 ± 0.004 (CRPS ratios, paired by window)"
    )
    lost = against_rivals([best(2), rival("flow_matching", 1, -0.02), rival("flow_matching", 25, -0.03)])
    assert lost.startswith("on test, with 2 network evaluations a frame, the chosen combination is worse than the best")
    assert "the best rival, flow matching with 1, by 0.020 ± 0.004" in lost
    assert "worse than the best rival, flow matching with 25, by 0.030" in lost


def test_without_rivals_nothing_is_said_of_them():
    assert against_rivals([best(), rival("flow", 1, 0.3)]) is None
    assert against_rivals([rival("foellmer", 1, 0.3)]) is None
    cheap = [best(25), rival("foellmer", 25, 0.1)]
    assert "higher cost" not in against_rivals(cheap)
    untested = [best(split="validation"), rival("foellmer", 1, 0.1, split="validation")]
    assert against_rivals(untested).startswith("on validation")
