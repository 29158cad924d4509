"""The rivals of a search: config, budget, that they train, resume and repeat exactly, and their rows in the table."""

import json
from dataclasses import replace

import pytest
import torch

from raypipe import checkpoint, config
from raypipe.config import COMPONENTS, RIVALS
from raypipe.evaluation.combinations import CombinationScorer
from raypipe.evaluation.rivals import rival_combinations
from raypipe.models.components import build_component
from raypipe.search import pipeline, records
from raypipe.search.budget import Budget
from raypipe.search.finalists import Finalist, read_finalists, write_finalists
from raypipe.search.rivals import rival_jobs
from raypipe.search.workload import RIVAL_STEPS, evaluation_work
from raypipe.training.monitor import read_metrics
from tests import raytools
from tests.raytools import flags, started, tiny, wait_for

WINNER = {
    "flow": {"train.loss": "mse", "train.noise_std": 0.2, "model.time_input": False, "train.learning_rate": 1e-3},
    "diffusion": {"train.loss": "nll"},
    "denoiser": {},
    "joint": {"train.loss": "crps", "train.score_share": 0.5, "model.backbone": "conv", "train.learning_rate": 2e-3},
}
STEPS = {"search.flow.refit_steps": 20, "search.diffusion.refit_steps": 12, "search.joint.refit_steps": 8}
EVERY = pytest.mark.parametrize("rival", RIVALS)


def searched(data, *stages, **values):
    """The experiment of a search that is over; the best trial of each stage is number 3."""
    rows = []
    for stage in stages:
        name = f"{stage}-03"
        row = records.rung_row(data.experiment, name, 5, flow=None, score=None, default=None)
        rows.append(row | {"stage": stage, "status": "finished", "refit": False, "values": json.dumps(WINNER[stage])})
        write_finalists(data.workspace, stage, [Finalist(name, f"{name}-s0", 0.5, (0.5,), 1.0, (), 0.1, None)])
    records.write_rows(data.workspace.trials, rows)
    return config.replace(data.experiment, **STEPS, **{"rivals": list(RIVALS), "train.forecast_members": 3, **values})


@EVERY
def test_a_rival_has_the_network_and_the_budget_of_the_joint_winner(own_data, rival):
    experiment = searched(own_data, "flow", "diffusion", "joint")
    first, second = rival_jobs(experiment, own_data.workspace, rival)
    assert [first.name, second.name] == [f"{rival}-joint-03-s0", f"{rival}-joint-03-s1"]
    settings = first.experiment
    assert settings.train.steps == 4 + 4 * 3  # half of 8 steps on the score of forecasts with three members
    assert (settings.sde.noise, settings.train.velocity_steps) == (rival, settings.train.steps)
    assert (settings.model.backbone, settings.train.learning_rate) == ("conv", 2e-3)
    assert settings.train.samples == 16 * settings.train.batch_size
    assert config.differences(settings, second.experiment) == {"train.random_seed": (0, 1)}


@EVERY
def test_without_a_joint_network_it_has_those_of_flow_and_diffusion(own_data, rival):
    experiment = searched(own_data, "flow", "diffusion", **{"evaluation.models": "best"})
    (job,) = rival_jobs(experiment, own_data.workspace, rival)
    settings = job.experiment
    assert (job.name, settings.train.steps) == (f"{rival}-flow-03-s0", 20 + 12)
    assert (settings.model.backbone, settings.train.noise_std) == ("transformer", 0.2)
    assert settings.train.component == "joint" and settings.model.time_input


def trained(job, folder, *stops):
    """A training of a job in this process, saved and restored at each stop."""
    for stop in (*stops, job.steps):
        training = job.build(0, 1, torch.device("cpu"), None)
        if (folder / "config.json").is_file():
            training.restore(folder)
        training.advance(stop, lambda progress: None, every=stop)
        training.save(folder)
    return folder


@EVERY
def test_it_trains_resumes_and_repeats_exactly(own_data, tmp_path, rival):
    (job,) = rival_jobs(searched(own_data, "joint", **{"evaluation.models": "best"}), own_data.workspace, rival)
    begun = job.build(0, 1, torch.device("cpu"), None)
    begun.save(tmp_path / "begun")
    whole, again = trained(job, tmp_path / "whole"), trained(job, tmp_path / "again")
    assert raytools.same_weights(whole, again)
    assert raytools.same_weights(whole, trained(job, tmp_path / "resumed", 5, 11))
    assert not raytools.same_weights(whole, tmp_path / "begun")
    meta = checkpoint.read_meta(whole)
    assert (meta.step, meta.noise) == (job.steps, rival)


def test_rivals_that_are_trained_are_scored_at_each_number_of_steps(own_data):
    experiment = searched(own_data, "joint")
    workspace = own_data.workspace
    assert rival_combinations(experiment, workspace) == []
    for job in rival_jobs(experiment, workspace, "foellmer"):
        trained(job, job.folder)
    found = rival_combinations(experiment, workspace)
    assert [c.steps for c in found] == sorted(RIVAL_STEPS, reverse=True)
    assert {c.baseline for c in found} == {"foellmer"} and len({c.key for c in found}) == len(found)
    scorer, models = CombinationScorer(own_data, "val", 4), ["foellmer-joint-03-s0", "foellmer-joint-03-s1"]
    ratios = set()
    for combination in found[-2:]:
        assert combination.models == [("joint", name) for name in models]
        assert scorer.fit(combination) is combination
        result = scorer.score(combination, decode=False)
        assert result.nfe_per_frame == combination.steps and result.score.members == experiment.evaluation.members
        assert result.training_seconds is None  # no logs
        ratios.add(result.score.ratio.value)
    assert len(ratios) == 2


def test_the_budget_of_the_command_counts_them():
    alone, compared = (evaluation_work(tiny(rivals=rivals), 1) for rivals in ([], list(RIVALS)))
    assert alone.steps == 0 and compared.steps == 2 * 2 * (24 + 12)
    assert compared.scores - alone.scores == 2 * 2 * (40 + 5)
    assert compared.fixed > 0


def evaluated(data):
    """Finish a search, with networks that were never trained as finalists, each the default of its stage, too."""
    searched(data, *COMPONENTS)
    for seed, component in enumerate(COMPONENTS):
        torch.manual_seed(seed)
        module = build_component(component, data.experiment.model, data.channels)
        meta = checkpoint.Meta(data.channels, component=component, model=data.experiment.model)
        checkpoint.save_component(data.workspace.run(component, f"{component}-03-s0"), module, meta)
        (finalist,) = read_finalists(data.workspace, component)
        flow = "flow-03-s0" if component == "diffusion" else None
        finalist = replace(finalist, published=True, flow=flow, residual_std=(0.3,) * data.channels)
        write_finalists(data.workspace, component, [finalist])


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_a_killed_evaluation_goes_on_with_the_rivals_that_it_adds_to_a_finished_search(head, own_data, tmp_path):
    evaluated(own_data)
    workspace = own_data.workspace
    values = {"rivals": list(RIVALS), "search.joint.refit_steps": 300, "train.checkpoint_every": 50}
    values |= {"evaluation.multipliers": [0.5], "evaluation.betas": [0.5], "evaluation.finalists": 1}
    argv = ["-m", "raypipe.evaluate", "--name", workspace.name, *flags(values)]
    first, second = (workspace.run("joint", f"{rival}-joint-03-s1") for rival in RIVALS)
    with started(tmp_path / "killed", argv, workspace.storage, **head.variables) as process:
        wait_for(lambda: len(read_metrics(second)) >= 10 or process.popen.poll() is not None, 300)
        assert process.popen.poll() is None, process.err[-4000:]
        process.popen.kill()
    kept = (first / "model.safetensors").stat().st_mtime_ns
    assert not second.exists()
    process = raytools.complete(tmp_path / "again", argv, workspace.storage, **head.variables)
    assert (first / "model.safetensors").stat().st_mtime_ns == kept
    check_rivals(workspace, 150 + 150 * 2)
    assert "network evaluation a frame, the chosen combination is" in process.out


def check_rivals(workspace, steps):
    """All rivals are trained with `steps` steps, logged once each, and are rows of the table that are never chosen."""
    for rival in RIVALS:
        for folder in workspace.folder.glob(f"joint/{rival}-*-s?"):
            logged = [row["step"] for row in read_metrics(folder)]
            assert logged == sorted({*logged}) and logged[-1] == checkpoint.read_meta(folder).step == steps
    assert list(workspace.folder.glob("joint/*/optimizer.safetensors")) == []
    rows = records.read_rows(workspace.evaluation / "combinations.parquet")
    for split in ("validation", "test"):
        rivals = [row for row in rows if row["split"] == split and row["baseline"] in RIVALS]
        assert sorted((row["baseline"], row["steps"]) for row in rivals) == [
            (rival, steps) for rival in sorted(RIVALS) for steps in RIVAL_STEPS
        ]
        for row in rivals:
            assert (row["nfe_per_frame"], row["chosen"], row["beta"]) == (row["steps"], False, 1.0)
            assert row["training_seconds"] > 0 and row["crps_ratio_pixels"] > 0
        assert [row["chosen"] for row in rows if row["split"] == split].count(True) == 1
    assert "<h2>Quality against cost</h2>" in (workspace.evaluation / "report.html").read_text()


@pytest.mark.parametrize("evaluates", [False, True])
def test_a_pipeline_that_evaluates_trains_them_after_its_stages(own_data, monkeypatch, evaluates):
    trained = []
    monkeypatch.setattr(pipeline, "train_rivals", lambda experiment, *args, **more: trained.extend(experiment.rivals))
    monkeypatch.setattr(pipeline, "check_trial_resources", lambda experiment: None)
    monkeypatch.setattr(pipeline, "concurrent_trials", lambda experiment: 1)
    experiment = config.replace(own_data.experiment, rivals=list(RIVALS))
    pipeline.run_stages(experiment, own_data.workspace, [], budget=Budget(None), evaluates=evaluates)
    assert trained == (list(RIVALS) if evaluates else [])
    assert own_data.workspace.experiment().rivals == list(RIVALS)
