"""The films of the finalists in the Optuna study: of whom, of what, and that a later evaluation replaces them."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import optuna
import pytest
from PIL import Image, ImageSequence

from raypipe.common.locks import file_lock
from raypipe.evaluation.combinations import Combination
from raypipe.evaluation.films import best_of_finalists, film, keep_films
from raypipe.forecast.manifest import CONSTANT, JOINT
from raypipe.search.optuna_internals import artifacts
from raypipe.search.study import open_storage
from raypipe.workspace.claims import LOCK, hold
from raypipe.workspace.layout import Workspace
from tests.evaluation.conftest import CHOSEN

FIRST, SECOND = (replace(CHOSEN, flow=f"flow-0{number}", beta=0.5 + number) for number in (0, 1))


@pytest.fixture
def data(data_with_best, tmp_path):
    """A copy with a study of two flows that have ended, as by a search killed while it wrote to the journal."""
    workspace = Workspace(tmp_path / "storage", data_with_best.workspace.name)
    shutil.copytree(data_with_best.workspace.storage, workspace.storage)
    study = optuna.create_study(study_name="flow", storage=open_storage(workspace.study))
    for _ in range(2):
        study.tell(study.ask(), 0.5)
    with workspace.study.open("a") as journal:
        journal.write('{"op_code":7,"wor')
    return replace(data_with_best, workspace=workspace)


def shown(workspace):
    """The artifacts of each trial, as raypipe finds them; optuna-dashboard reads them in tests/search/test_study.py."""
    study = optuna.load_study(study_name="flow", storage=open_storage(workspace.study))
    return [artifacts(study, trial) for trial in study.get_trials()]


def test_a_finalist_is_filmed_in_the_best_combination_that_has_it():
    plain = Combination("flow-01", None, CONSTANT)
    denoised = Combination("flow-01", "denoiser-00", "diffusion-02")
    joint = Combination("joint-00", "denoiser-00", JOINT)
    other = Combination("flow-00", None, "diffusion-02")
    found = best_of_finalists([plain, denoised, joint, other])
    assert found == [
        (plain, [("flow", "flow-01")]),
        (denoised, [("denoiser", "denoiser-00"), ("diffusion", "diffusion-02")]),
        (joint, [("joint", "joint-00")]),
        (other, [("flow", "flow-00")]),
    ]


def test_a_film_shows_the_truth_and_the_forecast_of_a_validation_window(data):
    frames = film(data, FIRST)
    given, horizon, size = 2, 3, 32
    assert len(frames) == given + horizon
    clips = [data.frames("val").clip(i) for i in range(len(data.frames("val")))]
    factor = 6  # of the enlargement: the panels are 192 pixels high
    first = frames[0][::factor, ::factor][3 : 3 + size, 3 : 3 + size]  # the panel has a gap of 2 and a rim of 1
    assert any((first == frame).all() for clip in clips for frame in clip)
    panels = [frames[-1][:, at : at + factor * size] for at in range(3 * factor, frames.shape[2] - 10, factor * 36)]
    assert len(panels) == 4 and (panels[1] != panels[2]).any()  # the truth, and three members that differ


def test_a_later_evaluation_replaces_the_films_and_removes_those_of_others(data):
    workspace = data.workspace
    keep_films(data, [FIRST, SECOND])
    (one,), (two,) = shown(workspace)
    assert sorted(path.name for path in workspace.artifacts.iterdir()) == sorted([one, two])
    with Image.open(workspace.artifacts / one) as gif:
        drawn = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
    assert len(drawn) == 5 and drawn[0].shape == film(data, FIRST)[0].shape
    before = (workspace.artifacts / one).read_bytes()
    with hold(workspace):  # as the pipeline does
        keep_films(data, [replace(FIRST, beta=3.0), replace(CHOSEN, flow="published")])
    assert shown(workspace) == [{one}, set()]
    assert [path.name for path in workspace.artifacts.iterdir()] == [one]
    assert (workspace.artifacts / one).read_bytes() != before


@pytest.mark.parametrize("why", ["another process", "no folder"])
def test_a_study_that_cannot_be_written_is_one_line_and_no_film(data, caplog, why):
    workspace, lock = data.workspace, file_lock(data.workspace.folder / LOCK)
    if why == "another process":
        lock.acquire()
        (workspace.folder / LOCK).write_text("process 7 on host")
    else:
        workspace.artifacts.touch()
    caplog.set_level(logging.WARNING)
    keep_films(data, [FIRST])
    lock.release()
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{workspace.study}: without the films of the finalists (")
    assert ("process 7 on host is running this search" in record.getMessage()) == (why == "another process")
    assert shown(workspace) == [set(), set()]


def test_a_search_without_a_study_has_no_films(data):
    data.workspace.study.unlink()  # as of an earlier version
    keep_films(data, [FIRST])
    assert not data.workspace.study.exists() and not data.workspace.artifacts.exists()
