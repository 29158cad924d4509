"""The study as a file: what a crash leaves of it, and what counts."""

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from raypipe.study import count_ended, drop_running, ended_trials, importances, known_trials, open_storage, rung_scores

SPACE = {"x": FloatDistribution(0, 1)}


def begin(path, count):
    study = optuna.create_study(study_name="flow", storage=open_storage(path))
    return study, [study.ask(SPACE) for _ in range(count)]


def test_a_line_that_a_full_disk_cut_short_is_dropped(tmp_path):
    path = tmp_path / "study.log"
    study, trials = begin(path, 2)
    study.tell(trials[0], 0.5)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":6,"worker')
    again = optuna.load_study(study_name="flow", storage=open_storage(path))
    again.tell(1, 0.4)
    assert [t.value for t in known_trials(open_storage(path), "flow")] == [0.5, 0.4]
    assert path.read_bytes().startswith(whole)


def test_what_was_left_running_ends_and_is_counted_but_not_what_never_began(tmp_path):
    path = tmp_path / "study.log"
    study, trials = begin(path, 3)
    trials[0].report(0.7, 100)
    study.tell(trials[0], 0.5)
    known = study.get_trials()
    drop_running(study, known[1:2], "its process failed")
    drop_running(study, known[2:], "cut off while it was proposed")
    known = known_trials(open_storage(path), "flow")
    assert [t.state for t in known] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL]
    assert count_ended(known) == ended_trials(path, "flow") == 2
    assert rung_scores(known, "flow") == {"flow-00": {100: 0.7}}
    assert ended_trials(path, "denoiser") == ended_trials(tmp_path / "none.log", "flow") == 0


def test_an_axis_that_decides_is_important(tmp_path):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert importances(study) == {}
    study.optimize(lambda t: t.suggest_float("decides", 0, 1) + 0 * t.suggest_float("idle", 0, 1), 40)
    found = importances(study)
    assert found["decides"] > 0.8 > found["idle"]
