"""Which combination is chosen, and whether it is better than its rivals and than repeating the last frame."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from raypipe.config import RIVALS
from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.table import SPLIT_NAMES, CombinationRow
from raypipe.forecast.ceiling import Ceiling
from raypipe.search.records import Row, is_finite

ChooseBy = Literal["latents", "pixels", "both"]
RIVAL_NAMES = {"flow_matching": "flow matching", "foellmer": "the Foellmer process"}
"""The rivals of the config in a sentence."""


def choose(finalists: Sequence[Combination], row: Callable[[Combination], CombinationRow], by: ChooseBy) -> Combination:
    """The best of the finalists, whose forecasts were decoded. row: their rows on validation. by: see `Evaluation`."""

    def key(combination: Combination) -> tuple[bool, float]:
        scores = row(combination)
        latents, pixels = _finite(scores.crps_ratio), _finite(scores.crps_ratio_pixels)
        beaten = by == "both" and not pixels < 1
        return beaten, {"latents": latents, "pixels": pixels, "both": latents * pixels}[by]

    return min(finalists, key=key)


def _finite(ratio: float | None) -> float:
    return ratio if ratio is not None and math.isfinite(ratio) else math.inf


def loses(row: Row) -> bool:
    """Whether decoded forecasts score no better than repeating the last frame. row: of combinations.parquet."""
    ratio = row["crps_ratio_pixels"]
    return ratio is not None and not ratio < 1


def verdict(rows: Sequence[Row], ceiling: Ceiling | None) -> str | None:
    """A sentence that says that nothing beat the last frame, and why; None if the chosen combination beats it.

    rows: of combinations.parquet. Persistence wins on validation if even the best finalist scores no better; where only
    the test split says so, the sentence names that split. Where the ensemble wins, but its single members are farther
    from the truth than the last frame, the sentence says so.
    """
    for split in SPLIT_NAMES.values():
        lost = [row for row in rows if row["split"] == split and row["chosen"] and loses(row)]
        if lost:
            ratio = lost[0]["crps_ratio_pixels"]
            return (
                f"nothing beat the last frame: in pixels, the best forecast on {split} is no better than repeating it "
                f"(CRPS ratio {ratio:.3f}; the last frame has 1), {_reason(lost[0], ceiling)}"
            )
    return _farther_members(rows)


def _farther_members(rows: Sequence[Row]) -> str | None:
    """A sentence if single members of the chosen combination have a lower PSNR than the last frame; else None."""
    for split in reversed(SPLIT_NAMES.values()):
        mine = [row for row in rows if row["split"] == split and row.get("psnr") is not None]
        chosen = next((row for row in mine if row["chosen"]), None)
        still = next((row for row in mine if row["baseline"] == "persistence"), None)
        if chosen is None or still is None:
            continue
        if chosen["psnr"] >= still["psnr"]:
            return None
        return (
            f"on {split}, the ensemble beats the last frame (CRPS ratio in pixels {chosen['crps_ratio_pixels']:.3f}), "
            f"but its single members do not: PSNR {chosen['psnr']:.1f} dB, of the last frame {still['psnr']:.1f}"
        )
    return None


def _reason(row: Row, ceiling: Ceiling | None) -> str:
    if ceiling is not None and ceiling.loses:
        return (
            "because the autoencoder loses more of a frame than the scene moves: even perfect latents would score "
            f"{ceiling.perfect[ceiling.best].crps_ratio_pixels:.3f}"
        )
    if not row["crps_ratio"] < 1:
        return (
            f"because the latents are not forecast better than repeated either (CRPS ratio {row['crps_ratio']:.3f}): "
            "too few or too different training videos, or too short a training"
        )
    return (
        f"because what is gained in latents (CRPS ratio {row['crps_ratio']:.3f}) is less than what the autoencoder "
        "loses; more of --autoencoder.steps, --autoencoder.channels or training videos help"
    )


def against_rivals(rows: Sequence[Row]) -> str | None:
    """A sentence that compares the chosen combination with the best rival at its cost, and with the best at a higher.

    rows: of combinations.parquet. Differences are paired by window, on test, or on validation if nothing is scored on
    test yet. None without rivals.
    """
    for split in reversed(SPLIT_NAMES.values()):
        scored = [row for row in rows if row["split"] == split and is_finite(row.get("behind_chosen"))]
        rivals = [row for row in scored if row["baseline"] in RIVALS]
        chosen = next((row for row in scored if row["chosen"]), None)
        if chosen is None or not rivals:
            continue
        cost = chosen["nfe_per_frame"]
        cheap, dear = ([r for r in rivals if (r["nfe_per_frame"] > cost) == more] for more in (False, True))
        evaluations = f"{cost:g} network evaluation{'s' * (cost != 1)}"
        parts = [f"with {evaluations} a frame, the chosen combination is {_compared(cheap, cost)}"] if cheap else []
        parts += [f"at a higher cost, it is {_compared(dear, cost)}"] if dear else []
        return f"on {split}, {'; '.join(parts)} (CRPS ratios, paired by window)"
    return None


def _compared(rivals: Sequence[Row], cost: float) -> str:
    """How the chosen combination compares with the best of some rivals. cost: its network evaluations a frame."""
    best = min(rivals, key=lambda row: row["behind_chosen"])
    gap, se, calls = best["behind_chosen"], best["behind_chosen_se"], best["nfe_per_frame"]
    name = RIVAL_NAMES[best["baseline"]] + ("" if calls == cost else f" with {calls:g}")
    if abs(gap) <= se:
        return f"as good as the best rival, {name}: {gap:+.3f} ± {se:.3f}"
    return f"{'better' if gap > 0 else 'worse'} than the best rival, {name}, by {abs(gap):.3f} ± {se:.3f}"
