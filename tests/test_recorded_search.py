"""A search made by an earlier version opens, resumes and predicts as it did then.

`recorded/search.tar.gz` holds the experiment that commit 85c4869 made of `raytools.TINY` with one trial at a time
(`--search.max_concurrent 1`, seed 0), less Ray's own files, optimizers and event files; and what its predictor gave.
"""

import json
import shutil
from dataclasses import asdict

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import raypipe
from raypipe.config import REFERENCE_COMPONENTS
from raypipe.data.conversion.preprocessing import Preprocessing
from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.run import keep_best
from raypipe.forecast.manifest import CONSTANT, JOINT, read_manifest
from raypipe.search.changes import adopt
from raypipe.search.finalists import read_finalists
from raypipe.search.progress import is_searched
from raypipe.search.study import ended_trials
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import Workspace
from tests.raytools import TINY, flags, started, tiny
from tests.recordedtools import unpack


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("recorded")).storage


@pytest.fixture(scope="module")
def workspace(storage):
    return Workspace(storage, "demo")


def test_its_config_is_read_as_it_was(workspace):
    search = yaml.safe_load((workspace.folder / "config.yaml").read_text())["search"]
    assert {"flow_trials", "flow_steps", "flow_refit_steps"} < search.keys()  # the fields' names at that time
    assert search["flow"].keys() == workspace.experiment().search.flow.axes.keys()
    assert workspace.experiment() == tiny(**{"search.max_concurrent": 1})


def test_it_opens_unchanged(storage, workspace, tmp_path):
    shutil.copytree(storage, tmp_path, dirs_exist_ok=True)
    copied = Workspace(tmp_path, "demo")
    assert copied.experiment().search.searched == REFERENCE_COMPONENTS
    assert all(is_searched(copied, name, copied.experiment().search) for name in REFERENCE_COMPONENTS)
    before = (copied.folder / "config.yaml").read_bytes()
    assert adopt(copied, tiny(**{"search.max_concurrent": 1})) == {}
    assert (copied.folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("component", REFERENCE_COMPONENTS)
def test_its_stages_are_finished(workspace, component):
    assert ended_trials(workspace.study, component) == TINY[f"search.{component}.trials"]
    finalists = read_finalists(workspace, component)
    assert any(f.handed_on for f in finalists)
    for name in (f.model for f in finalists if f.trial != "none"):
        raypipe.load_component(workspace.run(component, name))


def test_its_tables_name_its_models(workspace):
    trials = pq.read_table(workspace.trials).to_pylist()
    assert {row["stage"] for row in trials} == set(REFERENCE_COMPONENTS)
    assert all(workspace.run(row["stage"], row["trial"]).is_dir() for row in trials)


@pytest.fixture(scope="module")
def predictions(storage, workspace):
    """What its winner predicts, now and when it was recorded."""
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 4, 3, 32, 32)).astype(np.float32)
    predicted = raypipe.load_predictor(workspace.best).predict(
        torch.from_numpy(frames), 3, members=2, interpolate=2, seed=0
    )
    return predicted.numpy(), np.load(storage / "prediction.npy")


def test_its_winner_predicts_what_it_did(predictions):
    # Not to the last digit: processors sum in different orders.
    np.testing.assert_allclose(*predictions, atol=1e-4)


TABLES = {
    "trials.parquet": ("stage", "trial", "step", "refit"),
    "evaluation/combinations.parquet": ("split", "key"),
}
"""The tables of a search, each with the columns that identify a row."""
PERSISTENCE = Combination(None, None, None, steps=0, baseline="persistence")
RECONSTRUCTION = Combination(None, None, None, steps=0, baseline="reconstruction")
MEASURED = {"seconds", "seconds_per_frame", "combination"}
"""Columns that differ between runs: times, and row numbers, which follow the order in which scores arrive."""


def read_table(path, key):
    return {tuple(row[name] for name in key): row for row in pq.read_table(path).to_pylist()}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.demo
@pytest.mark.parametrize("table", TABLES)
def test_the_same_search_still_gives_the_same_tables(finished, workspace, predictions, table):
    """The demo has the recorded settings; processors that compute alike agree in every digit."""
    now, recorded = (
        read_table(folder / table, TABLES[table]) for folder in (finished.storage / "demo", workspace.folder)
    )
    added = {("validation", PERSISTENCE.key), ("test", RECONSTRUCTION.key)}  # the first has become a candidate since
    assert now.keys() - recorded.keys() <= added
    assert now.keys() >= recorded.keys()
    exact = np.array_equal(*predictions)
    for key, row in recorded.items():
        for name in row.keys() - MEASURED:
            expected = row[name] if exact or not isinstance(row[name], float) else pytest.approx(row[name], rel=1e-3)
            assert now[key][name] == expected, (key, name)


def test_its_winner_kept_again_says_how_its_videos_were_converted(storage, workspace, tmp_path):
    shutil.copytree(storage, tmp_path, dirs_exist_ok=True)
    place = Workspace(tmp_path, "demo")
    experiment = place.experiment()
    assert read_manifest(place.best).preprocessing is None  # of an earlier version
    made = Preprocessing(32, "pad", True, 5)
    folder = place.dataset(experiment) / "train"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conversion.json").write_text(json.dumps({"preprocessing": asdict(made)}))
    flow = read_finalists(place, "flow")[0]
    chosen = Combination(flow.trial, None, CONSTANT, flow_model=flow.model, beta=1.0, residual_std=flow.residual_std)
    keep_best(ExperimentData(experiment, place), chosen)
    assert read_manifest(place.best).preprocessing == made
    assert raypipe.load_predictor(place.folder).manifest.flow == flow.trial


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.long
def test_it_is_extended_by_a_joint_stage_and_keeps_the_rest(storage, workspace, head, tmp_path):
    """An experiment of an earlier version goes on with what there was not at its time."""
    shutil.copytree(storage, tmp_path / "storage", dirs_exist_ok=True)
    place = Workspace(tmp_path / "storage", "demo")
    extension = flags({"search.joint.trials": 1, "search.joint.steps": 8, "search.joint.refit_steps": 8})
    argv = ["experiments/pipeline.py", "--storage", place.storage, "--name", "demo", "--resume", *extension]
    with started(tmp_path / "log", argv, place.storage, **head.variables) as process:
        assert process.finish() == 0, process.err[-4000:]
    key = TABLES["trials.parquet"]
    before, after = (read_table(folder / "trials.parquet", key) for folder in (workspace.folder, place.folder))
    assert {name: after[name] for name in before} == {name: after[name] | row for name, row in before.items()}
    assert {row["stage"] for name, row in after.items() if name not in before} == {"joint"}
    rows = pq.read_table(place.evaluation / "combinations.parquet").to_pylist()
    assert any(row["diffusion"] == JOINT for row in rows)
    assert place.experiment().search.joint.trials == 1
