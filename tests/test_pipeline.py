"""What experiments/pipeline.py leaves behind, and the commands that go on from there."""

import json
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import raypipe
from experiments import pipeline as whole_pipeline
from raypipe import checkpoint, cli, evaluate, generate, train, tune
from raypipe.config import LOSSES, REFERENCE_COMPONENTS, ConfigError
from raypipe.search import opening, progress, records
from raypipe.search.finalists import read_finalists
from raypipe.search.first_points import default_point
from raypipe.search.optuna_internals import artifacts
from raypipe.search.study import read_only, trial_name
from raypipe.training.monitor import log_folder, read_metrics
from raypipe.workspace.layout import Workspace
from tests import mlflowtools, raytools
from tests.raytools import TINY, flags, outcome, tiny
from tests.readmetools import DEMO
from tests.videotools import read_video
from tests.wandbtools import read_runs

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.demo]
TRIAL_COLUMNS = {
    *("stage", "trial", "step", "status", "objective", "objective_se", "noise_std", "loss", "learning_rate"),
    *("seconds", "error"),
}
COMBINATION_COLUMNS = {
    *("flow", "denoiser", "diffusion", "alpha", "beta", "steps", "solver", "split", "baseline", "chosen"),
    *("crps_ratio", "crps_ratio_se", "crps_ratio_pixels", "psnr", "ssim", "spread_skill"),
    *("nfe_per_frame", "seconds_per_frame"),
}


@pytest.fixture(scope="module")
def workspace(finished):
    return Workspace(finished.storage, "demo")


@pytest.fixture(scope="module")
def trials(workspace):
    return records.read_rows(workspace.trials)


@pytest.fixture(scope="module")
def combinations(workspace):
    return records.read_rows(workspace.evaluation / "combinations.parquet")


def test_it_ends_with_the_table_and_the_report_and_leaves_no_process(finished, workspace):
    finished.process.gone()
    out, err = finished.process.out, finished.process.err
    assert "Traceback" not in err
    tail = out.rstrip().splitlines()[-3:]
    assert tail[0].split() == ["best", str(workspace.best)]
    assert tail[1].split() == ["report", str(workspace.evaluation / "report.html")]
    assert tail[2].split() == ["next", "python", "-m", "raypipe.generate"]
    assert "persistence" in out and "climatology" in out and "minus default" in out
    assert "default" in [line.split()[0] for line in out.splitlines() if line.split()]


def test_its_files_stand_where_the_design_says_and_can_be_read(workspace, trials, combinations):
    folder = workspace.folder
    raytools.check_files(folder)
    for name in ("config.yaml", "manifest.json", "study.log", "evaluation/report.html", "best/manifest.json"):
        assert (folder / name).is_file(), name
    for name in ("autoencoder", "flow/flow-00", "best/autoencoder", "best/flow"):
        for file in ("model.safetensors", "config.json"):
            assert (folder / name / file).is_file(), name
    for name in ("flow/*/optimizer.safetensors", "*/*/live.safetensors", "ray/train/*"):  # all trainings have ended
        assert list(folder.glob(name)) == []
    assert len(list(folder.glob("latents/*/*/index.parquet"))) == 3
    assert list(folder.glob("samples/*"))
    assert set(trials[0]) >= TRIAL_COLUMNS
    assert set(combinations[0]) >= COMBINATION_COLUMNS
    assert workspace.experiment() == tiny(**DEMO)


def test_the_page_of_the_search_ends_with_a_link_to_the_report(workspace, trials):
    page = (workspace.folder / "report.html").read_text()
    assert '<a href="evaluation/report.html">' in page and ">finished<" in page and 'http-equiv="refresh"' not in page
    assert all(f"<td>{row['trial']}</td>" in page for row in trials)


def test_the_manifest_says_what_ran(workspace):
    manifest = json.loads((workspace.folder / "manifest.json").read_text())
    assert {"python", "torch", "ray", "optuna"} <= set(manifest["versions"])
    assert set(manifest["seeds"]) == {"train", "search", "evaluation", "demo"}
    assert "commit" in manifest and manifest["dataset"]


@pytest.mark.parametrize("component", REFERENCE_COMPONENTS)
def test_every_stage_begins_with_the_published_default(trials, workspace, component):
    mine = [row for row in trials if row["stage"] == component and not row["refit"]]
    first = next(row for row in mine if row["trial"] == f"{component}-00")
    values = json.loads(first["values"])
    point = default_point(tiny(), component)
    assert {name: values[name] for name in point} == point
    assert values["train.noise_std"] == first["noise_std"] == 0.1
    assert first["loss"] == (LOSSES[component] or (None,))[0]
    assert first["time_input"] is False
    assert {row["trial"] for row in mine} == {f"{component}-{i:02d}" for i in range(TINY[f"search.{component}.trials"])}
    assert {row["status"] for row in mine} <= {"finished", "stopped"}
    finalists = read_finalists(workspace, component)
    assert len([f for f in finalists if f.published]) == 1
    assert any(f.handed_on for f in finalists)


def test_an_objective_is_a_forecast_score_never_a_training_loss(trials, workspace):
    for row in trials:
        folder = workspace.run(row["stage"], row["trial"])
        score = records.read_score(folder, row["step"])
        assert row["objective"] == pytest.approx(score.crps.mean() / score.reference.mean()), row["trial"]
        assert row["objective_se"] > 0
        logged = [m["loss"] for m in read_metrics(folder) if m["step"] == row["step"]]
        assert len(logged) == 1
        assert abs(logged[0] - row["objective"]) > 1e-4


def test_winners_are_trained_again_with_every_seed(trials, workspace):
    for component in REFERENCE_COMPONENTS:
        for f in read_finalists(workspace, component):
            if f.trial == "none":
                continue
            seeds = [f"{f.trial}-s{seed}" for seed in range(TINY["search.finalist_seeds"])]
            rows = {row["trial"]: row for row in trials if row["stage"] == component and row["trial"] in seeds}
            assert sorted(rows) == seeds
            assert sorted(f.objectives) == pytest.approx(sorted(row["objective"] for row in rows.values()))
            assert rows[f.model]["objective"] == min(row["objective"] for row in rows.values())
            meta = checkpoint.read_meta(workspace.run(component, f.model))
            assert meta.step == TINY[f"search.{component}.refit_steps"]


@pytest.mark.parametrize("component", REFERENCE_COMPONENTS)
def test_tensorboard_and_wandb_have_every_training_wandb_by_stage(trials, workspace, component):
    """Trials and refits alike; a trial is one run of wandb's, whatever rungs it has."""
    names = {row["trial"] for row in trials if row["stage"] == component}
    assert any(row["refit"] for row in trials if row["trial"] in names)
    for name in names:
        folder = workspace.run(component, name)
        logged = {row["step"]: row["loss"] for row in read_metrics(folder)}
        board = EventAccumulator(str(log_folder(folder)))
        board.Reload()
        assert {event.step: event.value for event in board.Scalars("loss")} == pytest.approx(logged)
        refit = any(row["refit"] for row in trials if row["trial"] == name)
        assert ("_hparams_/session_start_info" in board.summary_metadata) == (not refit)
        (run,) = read_runs(folder)
        assert (run.name, run.group) == (name, f"demo/{component}")
        assert run.loss == pytest.approx(logged)
        rungs = [row for row in trials if row["trial"] == name and not row["refit"]]
        assert run.objective == pytest.approx({row["step"]: row["objective"] for row in rungs})
        assert all(run.settings["train"]["noise_std"] == row["noise_std"] for row in rungs)


def test_wandb_has_the_training_of_the_autoencoder(workspace):
    (run,) = read_runs(workspace.autoencoder)
    assert (run.name, run.group, run.settings["width"]) == ("autoencoder", "demo/autoencoder", 8)
    assert run.loss


def test_mlflow_has_every_training_below_the_one_run_of_the_search_that_was_interrupted_and_resumed(workspace, trials):
    """Without MLFLOW_TRACKING_URI: in the folder of the experiment."""
    runs = mlflowtools.read_runs(f"sqlite:///{workspace.folder / 'mlruns' / 'mlflow.db'}")
    assert set(runs) == {"demo", "autoencoder", *(row["trial"] for row in trials)}
    assert (runs["demo"].parent, runs["demo"].status) == (None, "FINISHED")
    for row in records.last_rows(trials):
        run, folder = runs[row["trial"]], workspace.run(row["stage"], row["trial"])
        assert (run.parent, run.status) == ("demo", "KILLED" if row["status"] == "stopped" else "FINISHED")
        assert run.metrics["loss"] == [(logged["step"], logged["loss"]) for logged in read_metrics(folder)]
        scored = [(rung["step"], rung["objective"]) for rung in trials if rung["trial"] == row["trial"]]
        assert (run.metrics["objective"], run.metrics["final_objective"]) == (sorted(scored), [max(scored)])
        assert row["refit"] or run.params == {name: str(value) for name, value in json.loads(row["values"]).items()}


def test_the_test_split_is_touched_by_the_chosen_the_four_baselines_and_the_reconstruction_alone(combinations):
    everything = [row for row in combinations if row["split"] == "test"]
    tested = [row for row in everything if row["baseline"] != "reconstruction"]
    (perfect,) = [row for row in everything if row["baseline"] == "reconstruction"]
    assert sorted(str(row["baseline"]) for row in tested) == ["None", "climatology", "flow", "persistence", "published"]
    (chosen,) = [row for row in tested if row["baseline"] is None]
    assert [row["chosen"] for row in tested].count(True) == 1 and chosen["chosen"]
    for row in tested:
        assert row["crps_ratio"] > 0 and row["crps_ratio_pixels"] > 0 and row["ssim"] is not None
    assert perfect["crps_ratio"] == 0 and perfect["decoding"] == chosen["decoding"]
    assert perfect["crps_ratio_pixels"] > 0 and perfect["psnr"] > 0
    (flow,) = [row for row in tested if row["baseline"] == "flow"]
    assert (flow["flow"], flow["denoiser"], flow["diffusion"]) == (chosen["flow"], None, None)


def test_the_chosen_is_the_best_on_validation(combinations):
    mine = [row for row in combinations if row["split"] == "validation" and row["baseline"] is None]
    (chosen,) = [row for row in mine if row["chosen"]]
    assert chosen["crps_ratio"] == min(row["crps_ratio"] for row in mine)
    (tested,) = [row for row in combinations if row["split"] == "test" and row["chosen"]]
    parts = ("flow", "denoiser", "diffusion", "alpha", "beta", "steps")
    assert [tested[part] for part in parts] == [chosen[part] for part in parts]


def test_every_forecast_is_paired_with_the_chosen_one(workspace, combinations):
    kept = workspace.evaluation / "scores"
    for split in ("validation", "test"):
        rows = [row for row in combinations if row["split"] == split]
        (chosen,) = [row for row in rows if row["chosen"]]
        best = records.read_score(kept / f"{split}-{chosen['key'].replace('/', '_')}", 0)
        for row in rows:
            score = records.read_score(kept / f"{split}-{row['key'].replace('/', '_')}", 0)
            gap, unit = (score.crps - best.crps).mean(1), best.reference.mean(1)
            ratio = gap.mean() / unit.mean()
            se = np.std(gap - ratio * unit, ddof=1) / np.sqrt(len(gap)) / unit.mean()
            assert row["behind_chosen"] == pytest.approx(row["crps_ratio"] - chosen["crps_ratio"], abs=1e-9)
            assert (row["behind_chosen"], row["behind_chosen_se"]) == pytest.approx((ratio, se))


def test_the_lead_over_the_best_default_is_said_where_the_pipeline_ends_and_in_the_report(
    finished, workspace, combinations
):
    tested = {row["baseline"]: row for row in combinations if row["split"] == "test"}
    rivals = [row for name, row in tested.items() if name not in (None, "reconstruction")]
    best = min(rivals, key=lambda row: row["crps_ratio"])
    gap, se = tested[None]["crps_ratio"] - best["crps_ratio"], best["behind_chosen_se"]
    (line,) = [line for line in finished.process.out.splitlines() if line.startswith("chosen minus best baseline")]
    assert line.endswith(f": {gap:+.3f} +- {se:.3f}")
    page = (workspace.evaluation / "report.html").read_text()
    assert f"{abs(gap):.3f} ± {se:.3f} {'better' if gap < 0 else 'worse'} than the best baseline" in page


def test_persistence_is_the_unit_and_the_published_default_is_as_published(combinations):
    tested = {row["baseline"]: row for row in combinations if row["split"] == "test"}
    assert tested["persistence"]["crps_ratio"] == pytest.approx(1, abs=1e-6)
    assert tested["persistence"]["crps_ratio_pixels"] == pytest.approx(1, abs=1e-6)
    published = tested["published"]
    assert (published["alpha"], published["beta"], published["difference"]) == (1.0, 1.0, 0.0)
    assert (published["flow"], published["denoiser"], published["diffusion"]) == ("flow-00", "denoiser-00", "published")


def test_best_predicts(workspace, combinations):
    (chosen,) = [row for row in combinations if row["split"] == "test" and row["chosen"]]
    manifest = json.loads((workspace.best / "manifest.json").read_text())
    assert [manifest[name] for name in REFERENCE_COMPONENTS] == [chosen[name] for name in REFERENCE_COMPONENTS]
    predictor = raypipe.load_predictor(workspace.best)
    clip = torch.from_numpy(raypipe.open_shards(workspace.dataset(tiny()) / "test").clip(0))
    given = clip[None, :4].movedim(-1, 2) / 127.5 - 1
    predicted = predictor.predict(given, 3, members=2, interpolate=2)
    assert predicted.shape == (1, 2, 6, 3, 32, 32)
    assert predicted.isfinite().all() and predicted.std() > 0.01


def test_the_report_names_the_chosen_trials(workspace, combinations):
    page = (workspace.evaluation / "report.html").read_text()
    (chosen,) = [row for row in combinations if row["split"] == "test" and row["chosen"]]
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert chosen["flow"] in page
    assert f"{chosen['crps_ratio']:.3f}" in page


def films(workspace):
    """The artifacts of each trial in the studies of the search, and those that have a file."""
    storage = read_only(workspace.study)
    studies = [optuna.load_study(study_name=component, storage=storage) for component in REFERENCE_COMPONENTS]
    trials = [(study, trial) for study in studies for trial in study.get_trials()]
    found = {trial_name(study.study_name, trial.number): artifacts(study, trial) for study, trial in trials}
    return found, {path.name for path in workspace.artifacts.iterdir() if path.read_bytes()[:6] == b"GIF89a"}


def test_each_finalist_has_a_film_in_the_study(workspace, combinations):
    rows = [row for row in combinations if row["split"] == "validation" and row["baseline"] is None]
    finalists = {row[component] for row in rows for component in REFERENCE_COMPONENTS}
    found, files = films(workspace)
    assert {name for name, keys in found.items() if keys} == finalists & found.keys() and files
    assert all(len(keys) <= 1 for keys in found.values()) and set().union(*found.values()) == files


def test_evaluating_again_keeps_what_is_scored(two_cpus, workspace, combinations, capfd):
    """A row that was scored anew would show in its seconds_per_frame; a film takes the place of the earlier one."""
    filmed = films(workspace)
    protocol = (workspace.evaluation / "protocol.json").read_bytes()
    clips = {name: len({w["clip"] for w in windows}) for name, windows in json.loads(protocol)["windows"].items()}
    assert outcome(evaluate.main, evaluate.PROG, ["--storage", workspace.storage]) == 0
    assert records.read_rows(workspace.evaluation / "combinations.parquet") == combinations
    assert (workspace.evaluation / "protocol.json").read_bytes() == protocol
    out, err = capfd.readouterr()
    assert [line.split(" split;")[0] for line in out.splitlines() if line.startswith("protocol: ")] == [
        f"protocol: 6 windows of {clips['validation']} clips of demo's validation",
        f"protocol: 4 windows of {clips['test']} clips of demo's test",
    ]
    assert f"evaluating {workspace.folder}" in out
    assert "score on" not in err and "decode on" not in err
    assert films(workspace) == filmed


def test_an_extension_that_could_not_be_evaluated_is_refused_before_it_searches(two_cpus, workspace, capfd):
    config_file = workspace.folder / "config.yaml"
    before = raytools.listing(workspace.folder), config_file.read_bytes()
    argv = ["--storage", workspace.storage, "--resume", "--search.flow.trials", 9, "--evaluation.test_windows", 3]
    assert outcome(whole_pipeline.main, "pipeline.py", argv) == 2
    assert "the number of windows.test was 4 when the forecasts were scored, and is 3 now" in capfd.readouterr().err
    assert (raytools.listing(workspace.folder), config_file.read_bytes()) == before


def test_generate_works_with_no_more_than_the_storage(workspace, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert outcome(generate.main, generate.PROG, ["--storage", workspace.storage]) == 0
    written = [line.split()[1] for line in capfd.readouterr().out.splitlines() if line.startswith("wrote")]
    assert sorted(path.rsplit(".")[-1] for path in written) == ["gif", "mp4"]
    (film,) = [path for path in written if path.endswith("mp4")]
    assert len(read_video(film)) >= 6  # of 10: given ones and predicted ones


def test_a_diffusion_is_trained_on_the_best_flow_of_the_search(two_cpus, workspace, capfd):
    argv = ["--storage", workspace.storage, "--run-name", "g-01-nll", *flags(DEMO)]
    assert outcome(train.main, train.PROG, argv) == 0
    assert "trained diffusion g-01-nll: 24 steps, s = 0.1, loss nll" in capfd.readouterr().out
    meta = checkpoint.read_meta(workspace.run("diffusion", "g-01-nll"))
    assert meta.flow == read_finalists(workspace, "flow")[0].model


def test_a_second_pipeline_takes_the_next_free_name(workspace):
    def opened(*argv):
        args, overrides = cli.parse(tune.make_parser("pipeline.py", ""), [*argv, "--storage", str(workspace.storage)])
        experiment, found = opening.open_workspace(args, overrides, progress.is_unfinished)
        return SimpleNamespace(name=experiment.name, folder=found.folder)

    second = opened()
    assert (second.name, second.folder) == ("demo-2", workspace.storage / "demo-2")
    assert opened("--resume").folder == second.folder  # as if killed right after it was created
    assert list(second.folder.iterdir()) == []  # claimed, and nothing begun
    second.folder.rmdir()
    assert opened("--name", "mine").name == "mine"
    with pytest.raises(
        ConfigError, match=r"--name: 'demo' exists in .*; add --resume to continue it, or choose another name"
    ):
        opened("--name", "demo")
    with pytest.raises(
        ConfigError,
        match=r"--resume: .*demo is finished; to extend it, .* --search.flow.trials N; .* omit --resume",
    ):
        opened("--resume")
