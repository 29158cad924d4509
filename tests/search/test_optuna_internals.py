"""Each private API of Optuna that raypipe uses still does what raypipe needs it for."""

import optuna
from optuna.trial import TrialState

from raypipe.search.optuna_internals import resume_trial, set_user_attribute


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
