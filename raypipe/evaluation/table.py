"""combinations.parquet: the score of each combination on each split, and paired differences between scores."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from raypipe.config import RIVALS
from raypipe.evaluation.combinations import Baseline, Combination, HeldOutSplit, Result
from raypipe.forecast.decoding import PLAIN
from raypipe.metrics.calibration import LEVELS, RankHistogram
from raypipe.metrics.ensemble import Score
from raypipe.search import records
from raypipe.search.records import Row, is_finite
from raypipe.workspace.layout import Workspace

SPLIT_NAMES: dict[HeldOutSplit, str] = {"val": "validation", "test": "test"}
"""The column `split` of combinations.parquet, for each split."""
BASELINES = {
    "persistence": "persistence",
    "climatology": "climatology",
    "flow": "flow alone",
    "published": "default",
    "reconstruction": "perfect latents",
    "flow_matching": "flow matching",
    "foellmer": "Foellmer process",
}
"""Baselines of combinations.parquet and their labels in tables."""


@dataclass(frozen=True)
class Margin:
    """crps_ratio of the chosen combination minus that of the best baseline, on the same windows.

    default: name of the best baseline. steps: its integration steps per frame, if it is a rival. se: standard error of
    the difference, paired by window; nan if unknown.
    """

    default: str
    difference: float
    se: float
    steps: int | None = None


def is_compared(row: Row) -> bool:
    """Whether a row of combinations.parquet is a baseline to be compared with, which perfect latents are not."""
    return row["baseline"] not in (None, "reconstruction")


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """The best row of each baseline to be compared with: a rival has one for each number of steps."""
    best: dict[str, Row] = {}
    for row in sorted(filter(is_compared, rows), key=_ratio):
        best.setdefault(row["baseline"], row)
    return list(best.values())


def _ratio(row: Row) -> float:
    return float(row["crps_ratio"]) if is_finite(row["crps_ratio"]) else math.inf


def margin_over_best_default(rows: Sequence[Row], split: str) -> Margin | None:
    """The margin of the chosen combination over the best baseline of a split; below 0 the chosen one is better.

    rows: rows of combinations.parquet. split: `validation` or `test`. Returns None if the chosen combination or all
    baselines have no score.
    """
    scored = [row for row in rows if row["split"] == split and is_finite(row["crps_ratio"])]
    chosen = next((row for row in scored if row["chosen"]), None)
    defaults = [row for row in scored if is_compared(row)]
    if chosen is None or not defaults:
        return None
    best = min(defaults, key=lambda row: row["crps_ratio"])
    se = best.get("behind_chosen_se")
    steps = best["steps"] if best["baseline"] in RIVALS else None
    return Margin(best["baseline"], chosen["crps_ratio"] - best["crps_ratio"], math.nan if se is None else se, steps)


@dataclass(frozen=True)
class CombinationRow:
    """A row of combinations.parquet: the scores of a combination on a split. (`split`, `key`) identifies the row.

    difference, behind_chosen: crps_ratio minus that of the default and that of the chosen combination, paired by
    window. *_se: standard errors. crps_ratio_by_step: [H], crps_ratio of each predicted frame. crps_ratio_pixels, psnr
    (dB), ssim, energy_ratio_pixels, bodies_kept: scores of decoded frames, the last one at the last frame; None if they
    were not decoded. trainings: number of trainings of the flow that take turns. decoding: see
    `raypipe.forecast.decoding`. energy_ratio, variogram_ratio, rank_histogram [M + 1], reliability_index, coverage_50
    (the central 50%) and so on: of latents, and *_pixels of decoded frames, see `FieldScores` and `RankHistogram`; None
    in tables of earlier versions. efflite0_distance, efflite0_frechet, fvd, lpips, jedi: see `raypipe.evaluation.
    perceptual.scores`; *_sd: standard deviation over members; *_floor: of true clips; None without their weights, and
    on validation. See also `Combination` and `Result`.
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
    energy_ratio_pixels: float | None = None
    bodies_kept: float | None = None
    bodies_kept_by_step: list[float] | None = None
    trainings: int = 1
    decoding: str | None = None
    spread_skill_by_step: list[float] | None = None
    energy_ratio: float | None = None
    variogram_ratio: float | None = None
    variogram_ratio_pixels: float | None = None
    rank_histogram: list[float] | None = None
    rank_histogram_pixels: list[float] | None = None
    reliability_index: float | None = None
    reliability_index_pixels: float | None = None
    coverage_50: float | None = None
    coverage_50_pixels: float | None = None
    coverage_80: float | None = None
    coverage_80_pixels: float | None = None
    coverage_90: float | None = None
    coverage_90_pixels: float | None = None
    training_seconds: float | None = None
    efflite0_distance: float | None = None
    efflite0_frechet: float | None = None
    efflite0_frechet_floor: float | None = None
    fvd: float | None = None
    fvd_sd: float | None = None
    fvd_floor: float | None = None
    lpips: float | None = None
    jedi: float | None = None
    jedi_sd: float | None = None
    jedi_floor: float | None = None


class Table:
    """The rows of combinations.parquet. The file is written after every change."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.evaluation / "combinations.parquet"
        self._scores = workspace.evaluation / "scores"
        names = {field.name for field in fields(CombinationRow)}  # tables of earlier versions have other columns
        rows = records.read_rows(self._path)
        kept = [CombinationRow(**{name: value for name, value in row.items() if name in names}) for row in rows]
        self._rows = {(row.split, row.key): row for row in kept}

    @property
    def rows(self) -> list[Row]:
        """The rows as dictionaries, as `records.read_rows` returns them."""
        return [asdict(row) for row in self._rows.values()]

    def row(self, split: HeldOutSplit, combination: Combination) -> CombinationRow:
        """The row of a combination on a split."""
        return self._rows[SPLIT_NAMES[split], combination.key]

    def has(self, split: HeldOutSplit, combination: Combination, *, decoded: bool) -> bool:
        """Whether the table has a row of the combination. decoded: the row must have scores of decoded frames."""
        row = self._rows.get((SPLIT_NAMES[split], combination.key))
        return row is not None and (not decoded or row.crps_ratio_pixels is not None)

    def fitted(self, split: HeldOutSplit, combination: Combination) -> Combination:
        """The combination with the beta that was fitted and the decoding that was chosen when it was scored.

        Scores of earlier versions are of plain decoding.
        """
        row = self.row(split, combination)
        return replace(combination, beta=row.beta, decoding=row.decoding or PLAIN)

    def score(self, split: HeldOutSplit, combination: Combination) -> Score | None:
        """The scores of a combination on each window of a split, if they are kept."""
        return records.read_score(self._folder(split, combination.key), 0)

    def add(self, split: HeldOutSplit, result: Result) -> None:
        """Add or replace the row of a combination, and save its per-window scores."""
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
            trainings=1 + len(c.more_models),
            decoding=c.decoding if pixels else None,
            crps_ratio=score.ratio.value,
            crps_ratio_se=score.ratio.se,
            crps_ratio_pixels=pixels.crps_ratio if pixels else None,
            psnr=pixels.psnr if pixels else None,
            ssim=pixels.ssim if pixels else None,
            energy_ratio_pixels=pixels.energy_ratio if pixels else None,
            bodies_kept=pixels.bodies_kept[-1] if pixels and pixels.bodies_kept else None,
            bodies_kept_by_step=pixels.bodies_kept if pixels else None,
            spread_skill=score.spread_skill,
            nfe_per_frame=result.nfe_per_frame,
            seconds_per_frame=result.seconds_per_frame,
            training_seconds=result.training_seconds,
            crps_ratio_by_step=score.ratio_by_step.tolist(),
            spread_skill_by_step=score.spread_skill_by_step.tolist(),
            energy_ratio=result.fields.energy_ratio,
            variogram_ratio=result.fields.variogram_ratio,
            variogram_ratio_pixels=pixels.variogram_ratio if pixels else None,
            **_calibration(result.fields.ranks, ""),
            **(_calibration(pixels.ranks, "_pixels") if pixels else {}),
        )
        row = replace(row, **dict[str, Any](result.perceptual))
        self._rows[row.split, row.key] = row
        self.save()

    def forget(self, baseline: Baseline, kept: Collection[str]) -> None:
        """Remove the rows of a baseline with other keys, which are of models of an earlier state of the search."""
        self._rows = {k: row for k, row in self._rows.items() if row.baseline != baseline or row.key in kept}

    def mark_chosen(self, chosen: Combination, default: Combination) -> None:
        """Mark the chosen combination, and fill in the columns `difference` and `behind_chosen` of all rows."""
        for split, name in SPLIT_NAMES.items():
            base, best = (self.score(split, c) for c in (default, chosen))
            for row in [row for row in self._rows.values() if row.split == name]:
                score = records.read_score(self._folder(split, row.key), 0)
                gaps = _paired("difference", score, base) | _paired("behind_chosen", score, best)
                self._rows[name, row.key] = replace(row, chosen=row.key == chosen.key, **gaps)
        self.save()

    def save(self) -> None:
        """Write combinations.parquet."""
        records.write_rows(self._path, self.rows)

    def _folder(self, split: HeldOutSplit, key: str) -> Path:
        return self._scores / f"{SPLIT_NAMES[split]}-{key.replace('/', '_')}"


def _calibration(ranks: RankHistogram, suffix: str) -> dict[str, Any]:
    """Columns with a rank histogram and what follows from it."""
    found = {"rank_histogram": list(ranks.frequencies), "reliability_index": ranks.reliability_index}
    found |= {f"coverage_{100 * level:.0f}": ranks.coverage(level) for level in LEVELS}
    return {name + suffix: value for name, value in found.items()}


def _paired(name: str, score: Score | None, other: Score | None) -> Row:
    """Columns with the paired difference of two scores and its standard error; null if their windows differ."""
    gap = None
    if score is not None and other is not None and score.crps.shape == other.crps.shape:
        gap = score.minus(other)
    return {name: None if gap is None else gap.value, f"{name}_se": None if gap is None else gap.se}
