"""Which combination is chosen, and whether it is better than repeating the last frame, as a viewer sees it."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.table import SPLIT_NAMES, CombinationRow
from raypipe.forecast.ceiling import Ceiling
from raypipe.search.records import Row

ChooseBy = Literal["latents", "pixels", "both"]


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
