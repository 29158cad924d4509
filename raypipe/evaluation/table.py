"""combinations.parquet: a row for each combination and split, and the paired differences between rows."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
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


@dataclass(frozen=True)
class CombinationRow:
    """A row of combinations.parquet: a combination on one split, told apart by `split` and `key`.

    `difference` and `behind_chosen` are paired by window, against the default and against the chosen combination.
    """

    key: str
    split: str
    flow: str | None
    denoiser: str | None
    diffusion: str | None
    alpha: float | None
    beta: float | None
    steps: int | None
    solver: str | None
    baseline: str | None
    crps_ratio: float
    crps_ratio_se: float
    crps_ratio_pixels: float | None
    psnr: float | None
    ssim: float | None
    spread_skill: float
    nfe_per_frame: int
    seconds_per_frame: float
    crps_ratio_by_step: list[float]
    chosen: bool = False
    difference: float | None = None
    difference_se: float | None = None
    behind_chosen: float | None = None
    behind_chosen_se: float | None = None


class Table:
    """combinations.parquet as scores come in: each is written as soon as it is there."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.evaluation / "combinations.parquet"
        self._scores = workspace.evaluation / "scores"
        names = [field.name for field in fields(CombinationRow)]  # a table of an earlier version may have others too
        kept = [CombinationRow(**{name: row[name] for name in names}) for row in records.read_rows(self._path)]
        self._rows = {(row.split, row.key): row for row in kept}

    @property
    def rows(self) -> list[Row]:
        """The rows as they are read from the file."""
        return [asdict(row) for row in self._rows.values()]

    def row(self, split: Split, combination: Combination) -> CombinationRow:
        return self._rows[SPLIT_NAMES[split], combination.key]

    def has(self, split: Split, combination: Combination, *, decoded: bool) -> bool:
        row = self._rows.get((SPLIT_NAMES[split], combination.key))
        return row is not None and (not decoded or row.crps_ratio_pixels is not None)

    def fitted(self, split: Split, combination: Combination) -> Combination:
        """The combination with the beta that was fitted when it was scored."""
        return replace(combination, beta=self.row(split, combination).beta)

    def add(self, split: Split, result: Result) -> None:
        """Add or replace the combination's row."""
        c, score, pixels = result.combination, result.score, result.pixels
        records.save_score(self._folder(split, c.key), 0, score)
        row = CombinationRow(
            key=c.key,
            split=SPLIT_NAMES[split],
            flow=c.flow,
            denoiser=c.denoiser,
            diffusion=c.diffusion,
            alpha=c.alpha if c.denoiser else None,
            beta=c.beta,
            steps=c.steps or None,
            solver=c.solver if c.steps else None,
            baseline=c.baseline,
            crps_ratio=score.ratio.value,
            crps_ratio_se=score.ratio.se,
            crps_ratio_pixels=pixels.crps_ratio if pixels else None,
            psnr=pixels.psnr if pixels else None,
            ssim=pixels.ssim if pixels else None,
            spread_skill=score.spread_skill,
            nfe_per_frame=result.nfe_per_frame,
            seconds_per_frame=result.seconds_per_frame,
            crps_ratio_by_step=score.ratio_by_step.tolist(),
        )
        self._rows[row.split, row.key] = row
        self.save()

    def mark_chosen(self, chosen: Combination, default: Combination) -> None:
        """Mark the winner, and pair every score with the default's and the winner's, window by window."""
        for split, name in SPLIT_NAMES.items():
            base, best = (records.read_score(self._folder(split, c.key), 0) for c in (default, chosen))
            for row in [row for row in self._rows.values() if row.split == name]:
                score = records.read_score(self._folder(split, row.key), 0)
                gaps = _paired("difference", score, base) | _paired("behind_chosen", score, best)
                self._rows[name, row.key] = replace(row, chosen=row.key == chosen.key, **gaps)
        self.save()

    def save(self) -> None:
        records.write_rows(self._path, self.rows)

    def _folder(self, split: Split, key: str) -> Path:
        return self._scores / f"{SPLIT_NAMES[split]}-{key.replace('/', '_')}"


def _paired(name: str, score: Score | None, other: Score | None) -> Row:
    """The difference of two scores and its error as columns; null where they are not of the same windows."""
    gap = None
    if score is not None and other is not None and score.crps.shape == other.crps.shape:
        gap = score.minus(other)
    return {name: None if gap is None else gap.value, f"{name}_se": None if gap is None else gap.se}
