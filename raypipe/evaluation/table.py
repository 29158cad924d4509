"""combinations.parquet: a row for each combination and split, and the paired differences between rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from raypipe.evaluation.combinations import Combination, Result
from raypipe.metrics.ensemble import Score
from raypipe.search import records
from raypipe.search.records import Row, is_finite
from raypipe.workspace.layout import Workspace

Split = Literal["val", "test"]
SPLIT_NAMES: dict[Split, str] = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Margin:
    """The chosen combination's crps_ratio minus that of the best default, on the same windows.

    default: which of the baselines that is; se: of the difference paired by window, nan if it is not known.
    """

    default: str
    difference: float
    se: float


def margin_over_best_default(rows: Sequence[Row], split: str) -> Margin | None:
    """How far the chosen combination is from the best of a split's baselines; None if one of them has no score.

    rows: of combinations.parquet. Below 0 the chosen one is better.
    """
    scored = [row for row in rows if row["split"] == split and is_finite(row["crps_ratio"])]
    chosen = next((row for row in scored if row["chosen"]), None)
    defaults = [row for row in scored if row["baseline"] is not None]
    if chosen is None or not defaults:
        return None
    best = min(defaults, key=lambda row: row["crps_ratio"])
    se = best.get("behind_chosen_se")
    return Margin(best["baseline"], chosen["crps_ratio"] - best["crps_ratio"], math.nan if se is None else se)


class Table:
    """combinations.parquet: a row per combination and split, kept as scores come in."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.evaluation / "combinations.parquet"
        self._scores = workspace.evaluation / "scores"
        self.rows = records.read_rows(self._path)

    def row(self, split: Split, combination: Combination) -> records.Row:
        return next(r for r in self.rows if r["split"] == SPLIT_NAMES[split] and r["key"] == combination.key)

    def has(self, split: Split, combination: Combination, *, decoded: bool) -> bool:
        mine = [r for r in self.rows if r["split"] == SPLIT_NAMES[split] and r["key"] == combination.key]
        return bool(mine) and (not decoded or mine[0]["crps_ratio_pixels"] is not None)

    def fitted(self, split: Split, combination: Combination) -> Combination:
        """The combination with the beta that was fitted when it was scored."""
        return replace(combination, beta=self.row(split, combination)["beta"])

    def add(self, split: Split, result: Result) -> None:
        """Add or replace the combination's row."""
        c, score, pixels = result.combination, result.score, result.pixels
        records.save_score(self._folder(split, c.key), 0, score)
        kept = [r for r in self.rows if (r["split"], r["key"]) != (SPLIT_NAMES[split], c.key)]
        self.rows = [
            *kept,
            {
                "combination": len(kept),
                "key": c.key,
                "flow": c.flow,
                "denoiser": c.denoiser,
                "diffusion": c.diffusion,
                "alpha": c.alpha if c.denoiser else None,
                "beta": c.beta,
                "steps": c.steps or None,
                "solver": c.solver if c.steps else None,
                "split": SPLIT_NAMES[split],
                "baseline": c.baseline,
                "chosen": False,
                "crps_ratio": score.ratio.value,
                "crps_ratio_se": score.ratio.se,
                "difference": None,
                "difference_se": None,
                "behind_chosen": None,
                "behind_chosen_se": None,
                "crps_ratio_pixels": pixels.crps_ratio if pixels else None,
                "psnr": pixels.psnr if pixels else None,
                "ssim": pixels.ssim if pixels else None,
                "spread_skill": score.spread_skill,
                "nfe_per_frame": result.nfe_per_frame,
                "seconds_per_frame": result.seconds_per_frame,
                "crps_ratio_by_step": score.ratio_by_step.tolist(),
            },
        ]
        self.save()

    def mark_chosen(self, chosen: Combination, published: Combination) -> None:
        """Mark the winner, and pair every score with the published default's and the winner's, window by window."""
        for split in ("val", "test"):
            default, best = (records.read_score(self._folder(split, c.key), 0) for c in (published, chosen))
            for row in self.rows:
                if row["split"] != SPLIT_NAMES[split]:
                    continue
                row["chosen"] = row["key"] == chosen.key
                score = records.read_score(self._folder(split, row["key"]), 0)
                row |= _paired("difference", score, default) | _paired("behind_chosen", score, best)
        self.save()

    def save(self) -> None:
        records.write_rows(self._path, self.rows)

    def _folder(self, split: Split, key: str) -> Path:
        return self._scores / f"{SPLIT_NAMES[split]}-{key.replace('/', '_')}"


def _paired(name: str, score: Score | None, other: Score | None) -> records.Row:
    """The difference of two scores and its error as columns; null where they are not of the same windows."""
    gap = None
    if score is not None and other is not None and score.crps.shape == other.crps.shape:
        gap = score.minus(other)
    return {name: None if gap is None else gap.value, f"{name}_se": None if gap is None else gap.se}
