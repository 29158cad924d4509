"""Each private API of Optuna that raypipe uses still does what raypipe needs it for."""

import optuna
import pytest
from optuna.artifacts import ArtifactMeta, FileSystemArtifactStore, upload_artifact
from optuna.trial import TrialState

from raypipe.search.optuna_internals import artifacts, resume_trial, set_artifact, set_user_attribute
from raypipe.search.study import open_storage


def test_a_running_trial_is_resumed_in_another_study_object():
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    asked = study.ask()
    value = asked.suggest_float("x", 0, 1)
    asked.report(0.5, step=1)
    again = optuna.load_study(study_name="s", storage=storage)
    (frozen,) = again.get_trials()
    trial = resume_trial(again, frozen)
    assert (trial.number, trial.suggest_float("x", 0, 1)) == (asked.number, value)
    trial.report(0.4, step=2)
    again.tell(trial, 0.4)
    (done,) = study.get_trials()
    assert (done.state, done.value, done.intermediate_values) == (TrialState.COMPLETE, 0.4, {1: 0.5, 2: 0.4})


def test_a_frozen_trial_is_annotated():
    study = optuna.create_study()
    study.ask()
    set_user_attribute(study, study.get_trials()[0], "error", "killed")
    assert study.get_trials()[0].user_attrs == {"error": "killed"}


def test_a_trial_that_has_ended_has_artifacts_which_upload_artifact_refuses(tmp_path):
    """What optuna-dashboard shows of them: tests/search/test_study.py."""
    storage = open_storage(tmp_path / "study.log")
    study = optuna.create_study(study_name="s", storage=storage)
    for _ in range(2):
        study.tell(study.ask(), 0.5)
    first, second = study.get_trials()
    set_artifact(study, first, "0-1", ArtifactMeta("0-1", "forecast.gif", "image/gif", None))
    again = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "study.log"))
    assert artifacts(again, first) == {"0-1"} and artifacts(again, second) == set()
    set_artifact(again, first, "0-1", None)
    assert artifacts(again, first) == set()
    store = FileSystemArtifactStore(str(tmp_path))
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):  # otherwise it can do this instead
        upload_artifact(artifact_store=store, file_path=__file__, study_or_trial=first, storage=storage)
