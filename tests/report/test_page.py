"""The page: what it says, that it needs nothing else, and what it does without parts of a search."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
import yaml
from PIL import Image

from raypipe.config import ConfigError
from raypipe.data.demo import make_clip
from raypipe.metrics.calibration import LEVELS, RankHistogram
from raypipe.report.page import write_report
from raypipe.search import records
from raypipe.workspace.layout import Workspace

NASTY = 'flow-01<script>alert("x")</script>'
HORIZON, GIVEN = 8, 4
VOID = {"meta", "img", "link", "br", "input"}


def trial_rows():
    """Three searches as they end: finished, stopped and failed trials, and refits."""
    rng = np.random.default_rng(0)
    rows = []
    for stage, losses, levels, base in (
        ("flow", ["nll", "mse"], [0.1, 0.0, 0.03, 0.03, 0.1, 0.3, 0.012, 0.21], 0.58),
        ("denoiser", [None], [0.1, 0.05, 0.2, 0.4], 0.55),
        ("diffusion", ["regression", "nll"], [0.1, 0.0, 0.06, 0.15, 0.35, 0.02], 0.5),
    ):
        for i, s in enumerate(levels):
            loss = losses[i % len(losses)]
            name = NASTY if (stage, i) == ("flow", 1) else f"{stage}-{i:02d}"
            final = base + 0.15 * abs(s - 0.05) + (0.07 if loss in ("nll", "regression") and stage == "flow" else 0)
            status = "failed" if i == 5 else "stopped" if i % 3 == 1 else "finished"
            for step in [300] if status == "stopped" else [300, 900]:
                bad = status == "failed" and step == 900
                score = final + (0.08 if step == 300 else 0) + rng.normal(0, 0.01)
                rows.append(row(stage, name, step, status, None if bad else score, s, loss))
        for finalist, s in ((1, levels[1]), (2, levels[2])):
            for seed in range(3):
                name = f"{stage}-{finalist:02d}-seed{seed}"
                score = base - 0.02 + rng.normal(0, 0.008)
                refit = row(stage, name, 1500, "finished", score, s, losses[-1])
                rows.append(refit | {"refit": True})
    return rows


def row(stage, name, step, status, objective, s, loss):
    return {
        "stage": stage,
        "trial": name,
        "step": step,
        "status": status,
        "refit": False,
        "objective": objective,
        "objective_se": None if objective is None else 0.013,
        "difference": None if objective is None else objective - 0.6,
        "difference_se": 0.005,
        "noise_std": s,
        "loss": loss,
        "learning_rate": 3e-3,
        "time_input": stage != "denoiser",
        "flow": None if stage == "flow" else "flow-02",
        "magnitude": 1.5,
        "spread_skill": 0.91,
        "objective_by_step": [0.3, 0.5],
        "values": "{}",
        "seconds": 31.7,
        "error": "the loss is not a number" if objective is None else None,
    }


def combination(number, split, score, baseline=None, chosen=False, **changes):
    steps = np.linspace(0.45, 1.25, HORIZON) * score
    return {
        "combination": number,
        "flow": "flow-02",
        "denoiser": "denoiser-01" if number % 3 else None,
        "diffusion": "constant" if number % 5 == 0 else "diffusion-02",
        "alpha": 1.0,
        "beta": 0.75 if number % 2 else 1.0,
        "steps": 1 + number % 2,
        "solver": "euler_maruyama",
        "split": split,
        "baseline": baseline,
        "chosen": chosen,
        "crps_ratio": score,
        "crps_ratio_se": 0.0121,
        "difference": score - 0.5591,
        "difference_se": 0.0043,
        "behind_chosen": score - 0.4951,
        "behind_chosen_se": 0.0062,
        "crps_ratio_pixels": score + 0.1,
        "psnr": 17.31,
        "ssim": 0.654,
        "sharpness": 12.345,
        "spread_skill": 1.06,
        "nfe_per_frame": 3.0,
        "seconds_per_frame": 0.00231,
        "crps_ratio_by_step": (np.ones(HORIZON) if baseline == "persistence" else steps).tolist(),
    } | changes


def combination_rows():
    rows = [combination(i, "validation", 0.4873 + 0.007 * i, chosen=i == 0) for i in range(20)]
    for split in ("validation", "test"):
        for i, (baseline, score) in enumerate(
            [("persistence", 1.0), ("climatology", 0.7113), ("flow", 0.7169), ("published", 0.5591)]
        ):
            rows.append(combination(100 + i, split, score, baseline))
    return [*rows, combination(0, "test", 0.4951, chosen=True)]


def write_evaluation(workspace):
    records.write_rows(workspace.evaluation / "combinations.parquet", combination_rows())


def write_search(workspace):
    rows = trial_rows()
    records.write_rows(workspace.trials, rows)
    for r in rows:
        if not r["refit"]:
            folder = workspace.folder / r["stage"] / f"{r['trial'].replace('/', '')}.log"
            folder.mkdir(parents=True, exist_ok=True)
            loss = [
                {"step": t, "loss": 3 * np.exp(-t / 200) + 1.2 + r["noise_std"]} for t in range(30, r["step"] + 1, 30)
            ]
            if "script" not in r["trial"]:
                (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in loss))
    shares = {"train.noise_std": 0.7, "train.learning_rate": 0.3}
    for stage in ("flow", "denoiser", "diffusion"):
        path = workspace.importances(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(shares))


def write_samples(workspace, interpolate=4, count=2, **more):
    (workspace.folder / "samples").mkdir()
    for i in range(count):
        clip = make_clip(np.random.default_rng(i), GIVEN + HORIZON, 64, 0.03)
        other = np.roll(clip, 2, axis=2)
        np.savez(
            workspace.folder / "samples" / f"test_{i:05d}.npz",
            truth=clip,
            prediction=np.stack([clip[GIVEN:], other[GIVEN:]]),
            interpolated=clip[GIVEN:].repeat(interpolate, axis=0),
            given=GIVEN,
            interpolate=interpolate,
            **more,
        )


@pytest.fixture
def begun(tmp_path):
    """An experiment that has only begun."""
    workspace = Workspace(tmp_path, "demo-2")
    workspace.folder.mkdir()
    (workspace.folder / "config.yaml").write_text(yaml.safe_dump({"name": "demo-2", "dataset": {"image_size": 64}}))
    manifest = {
        "versions": {"torch": "2.99.1"},
        "commit": "0123456789ab+",
        "seeds": {"train": 7},
        "machine": {"cpus": 2},
    }
    (workspace.folder / "manifest.json").write_text(json.dumps(manifest))
    return workspace


@pytest.fixture
def finished(begun):
    write_evaluation(begun)
    write_search(begun)
    write_samples(begun)
    return begun


class Page(HTMLParser):
    """Checks that elements close in order, and gathers text and what is referred to."""

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.references, self.words = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "data", "poster")]

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "defs"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report(workspace):
    path = write_report(workspace)
    assert path == workspace.evaluation / "report.html"
    return path.read_text()


def test_the_whole_page(finished):
    source = report(finished)
    page = Page(source)
    assert page.tags.count("svg") == 1 + 3 * 3
    for words in (
        "0.495 ± 0.012 CRPS ratio on test",
        "flow-02 + constant diffusion with α = 1 and β = 1, at 1 integration step and 3 network evaluations per frame",
        "On the same windows its ratio is 0.064 ± 0.006 better than the best baseline , the default (differences",
        "The solver is euler_maruyama.",
        "30 % better than climatology (0.711)",
        "31 % better than the flow alone (0.717)",
        "11 % better than the default (0.559)",
        "17.31",
        "12.3",
        "12 more",
        "8 trials: 4 finished, 3 stopped early, 1 failed; 6 refits",
        "the loss is not a number",
        "0123456789ab+",
        "2.99.1",
        "image_size: 64",
        "every 1/4 frame",
        "cost of each trial",
        "train.noise_std",
    ):
        assert words in page.text, words
    parts = (
        "Forecasts",
        "Test",
        "Validation",
        "Over the horizon",
        "More forecasts",
        "The search",
        "Versions and seeds",
    )
    places = [source.index(f"<h2>{part}") for part in parts]
    assert places == sorted(places)


def test_with_rivals_quality_against_cost_comes_first(finished):
    rows = combination_rows()
    for i, (rival, base) in enumerate((("flow_matching", 0.6), ("foellmer", 0.62))):
        for calls, gain in ((1, 0.0), (2, 0.08), (4, 0.11), (8, 0.12), (25, 0.13)):
            changes = {"steps": calls, "nfe_per_frame": calls, "training_seconds": 123.4}
            rows.append(combination(200 + 10 * i + calls, "test", base - gain, rival, **changes))
    records.write_rows(finished.evaluation / "combinations.parquet", rows)
    source = report(finished)
    page = Page(source)
    assert page.tags.count("svg") == 2 + 3 * 3
    first = source.index("<svg")
    assert source.index("<h2>Quality against cost") < first < source.index("<h2>Test")
    drawn = source[first : source.index("</svg>")]
    for name in ("chosen", "flow matching", "Foellmer process", "default", "persistence", "climatology"):
        assert re.search(rf"<text[^>]*>{name}</text>", drawn), name
    # the chosen one takes 3 evaluations a frame, and has 0.4951
    assert page.text.index("On test, with 3 network evaluations a frame") < page.text.index("0.495 ± 0.012")
    assert "better than the best rival, flow matching with 2, by 0.025 ± 0.006" in page.text
    assert "at a higher cost, it is worse than the best rival, flow matching with 25, by 0.025 ± 0.006" in page.text
    assert "worse than the best baseline , flow matching with 25 steps" in page.text
    assert "5 % worse than flow matching with 25 steps (0.470)" in page.text
    assert "training s" in page.text and " 123 " in page.text


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (
            {"flow": 0.52, "published": 0.5591, "climatology": 0.7113, "persistence": 1.0},
            "0.025 ± 0.006 better than the best baseline , the flow alone, and "
            "0.064 ± 0.004 better than the default (differences",
        ),
        (
            {"flow": 0.52, "published": 0.6, "climatology": 0.48, "persistence": 1.0},
            "0.015 ± 0.006 worse than the best baseline , climatology, and",
        ),
        ({"persistence": 0.4}, "0.095 ± 0.006 worse than the best baseline , repeating the last frame, and"),
    ],
)
def test_the_headline_says_by_how_much_the_best_default_is_beaten(begun, scores, says):
    rows = [combination(i, "test", score, name) for i, (name, score) in enumerate(scores.items())]
    rows += [combination(8, "test", 0.4951, chosen=True), combination(9, "validation", 0.1, "flow")]
    records.write_rows(begun.evaluation / "combinations.parquet", rows)
    assert says in Page(report(begun)).text


def test_the_first_sentence_says_that_the_last_frame_won_and_why(finished):
    assert "nothing beat" not in Page(report(finished)).text.lower()
    reached = {"psnr": 21.0, "ssim": 0.7}
    scores = {"plain": {**reached, "crps_ratio_pixels": 2.421}, "anchored": {**reached, "crps_ratio_pixels": 1.391}}
    kept = {"autoencoder": "a", "windows": 64, "perfect": scores, "best": "anchored", "train_psnr": 22.0}
    kept |= {"persistence": {**reached, "crps_ratio_pixels": 1.0}}
    finished.ceiling.write_text(json.dumps(kept))
    rows = [combination(0, "validation", 0.65, chosen=True, crps_ratio_pixels=2.155)]
    records.write_rows(finished.evaluation / "combinations.parquet", rows)
    text = Page(report(finished)).text
    said = "Nothing beat the last frame: in pixels, the best forecast on validation is no better than repeating it"
    assert said in text and text.index(said) < text.index("CRPS ratio on validation")
    assert "even perfect latents would score 1.391." in text
    assert "Even perfect latents are worse than repeating the last frame" in text
    assert "perfect latents, anchored 1.391 21.00 0.700" in text


def crosses(svg):
    """How many marks of a failure a figure holds: uses of a shape that is two diagonals."""
    shape = r'id="(\w+)" d="M (-[\d.]+) ([\d.]+) \nL \3 \2 \nM \2 \2 \nL \3 \3 \n"'
    found = {name for name, _, _ in re.findall(shape, svg)}
    return sum(svg.count(f'xlink:href="#{name}"') for name in found)


def figures(source, stage):
    """A stage's figures: objective against noise, curves, importance and cost. The crosses and the caption of each."""
    section = source[source.index(f"<h3>{stage}</h3>") :]
    found = re.findall(r"<figure>(<svg.*?</svg>)\s*<figcaption>(.*?)</figcaption>", section, re.S)[:3]
    return [(crosses(svg), caption) for svg, caption in found]


def test_every_figure_of_a_search_counts_its_trials_and_shows_those_that_failed(finished):
    source = report(finished)
    scatter, curves, cost = figures(source, "flow")
    assert scatter == (
        1,
        "Objective against noise level, by loss. 8 trials and 6 refits; 1 failed: crosses at the top edge.",
    )
    assert curves[0] == 2  # its losses end, and its scores
    assert curves[1].startswith("Losses of 7 of 8 trials, scores of 8 trials; 1 failed: a cross marks the end")
    assert cost[0] == 1
    assert "from 7 of 8 trials with a score. Cost of 8 trials; 1 failed: a pale bar" in cost[1]
    assert [count for count, _ in figures(source, "diffusion")] == [1, 2, 1]
    denoiser = figures(source, "denoiser")
    assert [count for count, _ in denoiser] == [0, 0, 0]
    assert all("none failed." in caption and "4 trials" in caption for _, caption in denoiser)


def test_a_trial_that_failed_before_it_did_anything_is_in_the_figures(begun):
    rows = [row("flow", f"flow-{i:02d}", 300, "finished", 0.6 + i / 100, 0.1, "nll") for i in range(2)]
    dead = row("flow", "flow-02", 0, "failed", None, 0.0, "mse") | {"seconds": None, "learning_rate": None}
    records.write_rows(begun.trials, [*rows, dead])
    scatter, curves, cost = figures(report(begun), "flow")
    assert scatter[0] == 1 and "3 trials; 1 failed" in scatter[1]
    assert curves[0] == 0 and "scores of 2 of 3 trials; 1 failed" in curves[1]
    assert cost[0] == 1 and "from 2 of 3 trials with a score. Cost of 3 trials; 1 failed" in cost[1]


def test_what_is_best_for_its_cost_is_named_where_costs_differ(begun):
    def trial(i, objective, nfe):
        return row("flow", f"flow-{i:02d}", 300, "finished", objective, 0.1, "nll") | {"nfe_per_frame": nfe}

    same = [trial(i, 0.6 + i / 100, 2) for i in range(3)]
    records.write_rows(begun.trials, same)
    assert "The line joins the Pareto-optimal trials" not in report(begun)
    dead = row("flow", "flow-05", 0, "failed", None, 0.0, "mse") | {"nfe_per_frame": None}
    records.write_rows(begun.trials, [*same, trial(3, 0.7, 1), trial(4, 0.59, 8), dead])
    source = report(begun)
    (svg, caption) = re.search(
        r"<figure>(<svg(?:(?!<svg).)*?</svg>)\s*<figcaption>(The line joins.*?)<", source, re.S
    ).groups()
    assert re.findall(r"flow-\d\d", svg) == ["flow-04", "flow-00", "flow-03"]
    assert caption.endswith("5 of 6 trials; 1 failed: not shown.")


def test_an_axis_that_a_trial_lacks_is_a_dash(begun):
    lacks = {"learning_rate": None, "time_input": None, "loss": None, "flow": None, "noise_std": None}
    rows = [
        row("diffusion", "diffusion-00", 300, "finished", 0.6, 0.1, "nll"),
        row("diffusion", "diffusion-01", 300, "finished", 0.7, 0.2, "nll") | lacks,
    ]
    records.write_rows(begun.trials, rows)
    source = report(begun)
    (cells,) = re.findall(r"<tr>(<td>diffusion-01</td>.*?)</tr>", source)
    assert re.sub(r"<[^>]*>", " ", cells).split().count("–") == len(lacks)
    assert not {"None", "nan"} & set(Page(source).text.split())


def test_it_needs_no_other_file(finished, tmp_path):
    source = report(finished)
    references = Page(source).references
    assert len([r for r in references if r.startswith("data:image/")]) == 2 * (1 + 3)
    assert all(r.startswith(("data:image/", "#")) for r in references)
    styles = re.findall(r"url\(([^)]*)\)", source)
    assert all(target.startswith("#") for target in styles)
    assert "@import" not in source
    assert str(tmp_path) not in source
    assert len(source) < 3_000_000


def test_what_comes_from_data_is_escaped(finished):
    source = report(finished)
    assert "script" not in Page(source).tags
    assert "flow-01&lt;script&gt;" in source


def test_colours_are_the_themes(finished):
    svg = "".join(re.findall(r"<svg.*?</svg>", report(finished), re.S))
    assert "var(--series-1)" in svg
    assert "var(--muted)" in svg
    assert re.findall(r"#0[0-9a-f]{5}\b(?![0-9a-f])", svg) == []


def test_the_same_files_give_the_same_page(finished):
    assert report(finished) == report(finished)


def test_an_experiment_that_has_only_begun(begun):
    text = Page(report(begun)).text
    for words in ("No combination has been chosen yet", "no samples yet", "has not been scored yet"):
        assert words in text
    assert text.count("This stage has not run.") == 3


@pytest.mark.parametrize("write", [write_evaluation, write_search, write_samples])
def test_parts_stand_alone(begun, write):
    write(begun)
    (begun.folder / "manifest.json").unlink()
    assert "The experiment has no manifest.json." in Page(report(begun)).text


def test_test_split_untouched(begun):
    rows = [r for r in combination_rows() if r["split"] == "validation"]
    records.write_rows(begun.evaluation / "combinations.parquet", rows)
    text = Page(report(begun)).text
    assert "0.487 ± 0.012 CRPS ratio on validation" in text
    assert "The test split has not been used yet." in text


def test_perfect_latents_are_a_row_but_no_rival(begun):
    write_evaluation(begun)
    before = report(begun)
    bound = combination(9, "test", 0.0, "reconstruction", crps_ratio_pixels=0.1357, psnr=31.46)
    records.write_rows(begun.evaluation / "combinations.parquet", [*combination_rows(), bound])
    after = report(begun)
    assert "perfect latents" in Page(after).text and "31.46" in Page(after).text and "31.46" not in before
    headline, horizon = slice(0, after.index("<h2>Test")), "<h2>Over the horizon"
    assert after[headline] == before[headline]
    assert after[after.index(horizon) :] == before[before.index(horizon) :]


def test_a_line_under_every_table_of_scores_says_the_protocol(begun):
    write_evaluation(begun)
    assert "Protocol: " not in report(begun)  # of an evaluation of an earlier version
    windows = [{"clip": f"clip-{i // 2}", "start": i} for i in range(6)]
    protocol = {
        "dataset": {"name": "street", "preprocessing": None},
        "frames": {"image_size": 64, "range": [-1, 1], "frame_stride": 1, "given": 4, "predicted": 8},
        "members": {"validation": 4, "test": 5, "climatology": 16, "deterministic": 1},
        "seed": 3,
        "windows": {"validation": windows[:2], "test": windows},
    }
    (begun.evaluation / "protocol.json").write_text(json.dumps(protocol))
    text = Page(report(begun)).text
    test, validation = text.index("Protocol: 6 windows of 3 clips"), text.index("Protocol: 2 windows of 1 clips")
    assert text.index("Test The chosen combination") < test < text.index("Validation All") < validation
    assert "street's test split; 4 frames given, 8 predicted and scored; 64x64 pixels" in text
    assert "5 members (climatology 16, without noise 1), seed 3" in text


def with_reliability(row, members):
    """A row with the columns on reliability, of an ensemble that is too narrow."""
    counts = [3.0, *[1.0] * (members - 1), 3.0]
    histogram = RankHistogram(tuple(count / sum(counts) for count in counts))
    columns = {"rank_histogram": list(histogram.frequencies), "reliability_index": histogram.reliability_index}
    columns |= {f"coverage_{100 * level:.0f}": histogram.coverage(level) for level in LEVELS}
    columns |= {f"{name}_pixels": value for name, value in columns.items()}
    columns |= {"energy_ratio": 0.4321, "variogram_ratio": 0.8765, "spread_skill_by_step": [0.5] * HORIZON}
    return row | columns


def test_the_page_shows_whether_the_ensembles_are_reliable(begun):
    write_evaluation(begun)
    assert "Reliability, and whole frames" not in report(begun)  # of an evaluation without these columns
    sizes = {None: 4, "published": 4, "climatology": 16}
    rows = [
        with_reliability(row, sizes[row["baseline"]]) if row["split"] == "test" and row["baseline"] in sizes else row
        for row in combination_rows()
    ]
    records.write_rows(begun.evaluation / "combinations.parquet", rows)
    source = report(begun)
    text = Page(source).text
    assert source.index("<h2>Over the horizon") < source.index("<h2>Reliability") < source.index("<h2>The search")
    section = source[source.index("<h2>Reliability") : source.index("<h2>The search")]
    assert section.count("<svg") == 1 and all(f"var(--series-{i})" in section for i in (1, 2, 3))
    assert "chosen, pixels" in section and "default" in section
    assert "An ensemble of 4 says nothing of its central 80% and 90%" in text and "test_members 19 would" in text
    name = "flow-02 + constant diffusion"
    outer = 2 * (3 / 9 - 1 / 5) + 3 * (1 / 5 - 1 / 9)
    assert f"{name} 4 0.432 0.876 {outer:.3f} {1 / 9 + 1.5 / 9:.3f} – {outer:.3f}" in text  # climatology alone has 80%
    assert "sharpness" in text and "reliability index" not in text  # no further columns of the table of scores


def test_columns_and_values_that_are_missing(begun):
    """Of older tables, of single windows and of stages cut off early."""
    rows = [r for r in combination_rows() if r["split"] == "test"]
    for r in rows:
        del r["crps_ratio_by_step"], r["psnr"]
        r |= {"crps_ratio_se": float("nan"), "difference": None, "difference_se": None}
    rows[1]["crps_ratio"] = None
    records.write_rows(begun.evaluation / "combinations.parquet", rows)
    failed = [
        row("flow", "flow-00", 0, "failed", None, 0.1, "nll"),
        row("denoiser", "none", 0, "running", 0.6, None, None),
    ]
    records.write_rows(begun.trials, failed)
    text = Page(report(begun)).text
    assert "0.495 ± – CRPS ratio on test" in text
    assert "PSNR" not in text
    assert "nan" not in text
    assert "1 trial: 1 failed" in text
    assert "No scores of single frames yet" in text


def test_samples_without_in_between_frames(begun):
    write_samples(begun, interpolate=1, count=1)
    assert len(Page(report(begun)).references) == 1 + 2


def test_the_first_film_shows_the_best_rival_too(begun):
    clip = make_clip(np.random.default_rng(9), HORIZON, 64, 0.03)
    write_samples(begun, count=1)
    (alone,) = films(begun)
    shutil.rmtree(begun.folder / "samples")
    write_samples(begun, count=1, rival=np.stack([clip, clip[::-1]]), rival_name="flow_matching", rival_steps=25)
    (both,) = films(begun)
    assert both.width == alone.width and both.height == 2 * alone.height and both.n_frames == alone.n_frames
    both.seek(GIVEN + 2)
    alone.seek(GIVEN + 2)
    upper, lower = (np.asarray(film.convert("RGB")) for film in (alone, both))
    assert np.abs(upper.astype(int) - lower[: alone.height]).mean() < 4  # a GIF has 256 colors in all
    text = Page(report(begun)).text
    assert "predicted by the best rival on test, flow matching with 25 steps" in text
    assert "below, those of flow matching with 25 steps" in text


def films(workspace):
    """The films of the report."""
    found = re.findall(r"data:image/gif;base64,([^\"]+)", report(workspace))
    return [Image.open(BytesIO(base64.b64decode(film))) for film in found]


def test_the_worst_the_median_and_the_best_forecast(begun):
    folder = begun.folder / "samples" / "cases"
    folder.mkdir(parents=True)
    for name, score in (("best", 0.1), ("median", 0.3), ("worst", 0.9)):
        clip = make_clip(np.random.default_rng(0), GIVEN + HORIZON, 64, 0.03)
        about = {"given": GIVEN, "clip": f"test_{name}", "start": 7, "score": score, "mean": 0.35, "windows": 128}
        np.savez(folder / f"{name}.npz", truth=clip, prediction=np.stack([clip[GIVEN:]] * 3), **about)
    page = Page(report(begun))
    assert "Of the 128 test windows, by the CRPS" in page.text and "is the CRPS ratio, 0.350" in page.text
    places = [page.text.index(f"{word} clip test_") for word in ("Worst: 0.900", "Median: 0.300", "Best: 0.100")]
    assert places == sorted(places) and len(page.references) == 3 * 4


def test_a_folder_without_an_experiment(tmp_path):
    with pytest.raises(ConfigError, match="no experiment here"):
        write_report(Workspace(tmp_path, "none"))


def test_a_damaged_table(begun):
    begun.trials.write_text("no table")
    with pytest.raises(ConfigError, match=r"trials.parquet: not a Parquet table"):
        write_report(begun)
