"""combinations.parquet: tables of earlier versions, and which rows the chosen combination is compared with."""

from dataclasses import asdict, replace

import pytest

from raypipe.evaluation.table import CombinationRow, Table, best_of_each, margin_over_best_default
from raypipe.search import records
from raypipe.workspace.layout import Workspace

NEW = ("training_seconds", "energy", "variogram", "rank_histogram", "reliability", "coverage", "spread_skill_by_step")


def row(baseline, ratio, chosen=False):
    return CombinationRow(
        key=str(baseline), split="test", flow=None, denoiser=None, diffusion=None, alpha=None, beta=None, steps=None,
        solver=None, baseline=baseline, crps_ratio=ratio, crps_ratio_se=0.01, crps_ratio_pixels=ratio, psnr=20.0,
        ssim=0.8, spread_skill=0.9, nfe_per_frame=1, seconds_per_frame=0.001, crps_ratio_by_step=[ratio], chosen=chosen,
    )  # fmt: skip


def test_a_table_of_an_earlier_version_is_read_and_kept(tmp_path):
    workspace = Workspace(tmp_path, "demo")
    old = {name: value for name, value in asdict(row(None, 0.4)).items() if not name.startswith(NEW)}
    assert len(old) < len(asdict(row(None, 0.4))) - 10
    records.write_rows(workspace.evaluation / "combinations.parquet", [old])
    table = Table(workspace)
    assert table.rows == [asdict(row(None, 0.4))]
    table.save()
    (kept,) = records.read_rows(workspace.evaluation / "combinations.parquet")
    assert kept["crps_ratio"] == 0.4 and kept["rank_histogram"] is None and kept["coverage_50"] is None


def test_perfect_latents_are_no_baseline_to_beat():
    rows = [asdict(row(None, 0.4, chosen=True)), asdict(row("reconstruction", 0.0)), asdict(row("flow", 0.6))]
    margin = margin_over_best_default(rows, "test")
    assert margin.default == "flow" and margin.difference == pytest.approx(-0.2)


def rivals():
    """A rival at three numbers of steps."""
    made = [(1, 0.5), (4, 0.35), (25, 0.36)]
    return [replace(row("foellmer", ratio), key=f"foellmer/{steps}", steps=steps) for steps, ratio in made]


def test_of_a_rival_the_best_number_of_steps_counts():
    rows = [asdict(r) for r in (row(None, 0.4, chosen=True), *rivals(), row("flow", 0.6), row("reconstruction", 0.0))]
    assert [(r["baseline"], r["steps"]) for r in best_of_each(rows)] == [("foellmer", 4), ("flow", None)]
    margin = margin_over_best_default(rows, "test")
    assert (margin.default, margin.steps) == ("foellmer", 4) and margin.difference == pytest.approx(0.05)


def test_a_rival_of_an_earlier_winner_is_forgotten(tmp_path):
    workspace = Workspace(tmp_path, "demo")
    records.write_rows(
        workspace.evaluation / "combinations.parquet", [asdict(r) for r in (*rivals(), row("flow", 0.6))]
    )
    table = Table(workspace)
    table.forget("foellmer", {"foellmer/4"})
    assert [r["key"] for r in table.rows] == ["foellmer/4", "flow"]
