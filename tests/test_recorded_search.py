"""A search made by an earlier version opens, resumes and predicts as it did then.

`recorded/search.tar.gz` holds the experiment that commit 85c4869 made of `raytools.TINY` with one trial at a time
(`--search.max_concurrent 1`, seed 0), less Ray's own files, optimizers and event files; and what its predictor gave.
"""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import raypipe
from raypipe.config import COMPONENTS
from raypipe.search.finalists import read_finalists
from raypipe.search.study import ended_trials
from raypipe.workspace.layout import Workspace
from tests.raytools import TINY, tiny

RECORDED = Path(__file__).parent / "recorded" / "search.tar.gz"


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    with tarfile.open(RECORDED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def workspace(storage):
    return Workspace(storage, "demo")


def test_its_config_is_read_as_it_was(workspace):
    assert workspace.experiment() == tiny(**{"search.max_concurrent": 1})


@pytest.mark.parametrize("component", COMPONENTS)
def test_its_stages_are_finished(workspace, component):
    assert ended_trials(workspace.study, component) == TINY[f"search.{component}_trials"]
    finalists = read_finalists(workspace, component)
    assert any(f.handed_on for f in finalists)
    for name in (f.model for f in finalists if f.trial != "none"):
        raypipe.load_component(workspace.run(component, name))


def test_its_tables_name_its_models(workspace):
    trials = pq.read_table(workspace.trials).to_pylist()
    assert {row["stage"] for row in trials} == set(COMPONENTS)
    assert all(workspace.run(row["stage"], row["trial"]).is_dir() for row in trials)


def test_its_winner_predicts_what_it_did(storage, workspace):
    frames = np.random.default_rng(0).uniform(-1, 1, (1, 4, 3, 32, 32)).astype(np.float32)
    predicted = raypipe.load_predictor(workspace.best).predict(
        torch.from_numpy(frames), 3, members=2, interpolate=2, seed=0
    )
    # Not to the last digit: processors sum in different orders.
    np.testing.assert_allclose(predicted.numpy(), np.load(storage / "prediction.npy"), atol=1e-4)
