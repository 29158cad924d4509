"""`search.minutes` and `search.patience` on a real Ray: with trials that wait, and with the whole pipeline."""

import time
from dataclasses import asdict

import optuna
import pytest
from optuna.trial import TrialState
from ray import tune as ray_tune

from experiments import pipeline
from raypipe.config import REFERENCE_COMPONENTS
from raypipe.search import records
from raypipe.search.budget import Budget, StageWork, Work
from raypipe.search.early import EarlyEnd, left_out, read_early
from raypipe.search.finalists import read_finalists
from raypipe.search.stage import Stage
from raypipe.search.study import ended_trials, known_trials, open_storage
from raypipe.search.trial_run import TrialResult
from raypipe.search.tuner import run_search
from raypipe.workspace.layout import Workspace
from tests import raytools
from tests.raytools import TINY, flags, outcome
from tests.search.simulated import begin, resume

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
optuna.logging.set_verbosity(optuna.logging.ERROR)

SECONDS = 0.5
"""How long a `Waiting` trial trains to a rung if a budget in seconds is tested."""


class Waiting(ray_tune.Trainable):
    """A trial that waits instead of training; the first is the best."""

    def setup(self, config, stage=None):
        self.stage = stage
        self.reset_config(config)

    def reset_config(self, new_config):
        self.given, self.left = new_config, [r for r in self.stage.rungs if r not in new_config["reported"]]
        return True

    def step(self):
        time.sleep(SECONDS if self.stage.experiment.search.minutes else 0)
        rung = self.left.pop(0)
        name = self.given["trial"]
        return asdict(
            TrialResult(
                0.5 + int(name[-2:]) / 1000, rung, name, "{}", 0.1, SECONDS, not self.left,
                trained=rung, training=SECONDS, scoring=0.01,
            )
        )  # fmt: skip

    def save_checkpoint(self, checkpoint_dir):
        pass

    def load_checkpoint(self, checkpoint):
        pass


def budget(seconds):
    made = Budget(seconds / 60)
    made.plan({"flow": StageWork(Work(1000, 100), Work())}, Work())
    return made


def states(stage, component="flow"):
    """Of the trials that have begun."""
    known = known_trials(open_storage(stage.workspace.study), component)
    return [trial.state for trial in known if trial.state != TrialState.WAITING]


def test_a_share_ends_a_stage_and_the_next_call_runs_the_rest(two_cpus, tmp_path):
    """Beyond its time a stage takes the seconds in which Ray ends its processes; all trials would take 45."""
    options = {"search.flow.trials": 60, "search.scheduler": "none", "search.minutes": 0.25}
    stage = begin(tmp_path, **options)
    began = time.monotonic()
    run_search(stage, trainable=Waiting, budget=budget(15))
    assert time.monotonic() - began < 15 + 20
    ended = ended_trials(stage.workspace.study, "flow")
    assert 1 <= ended < 60
    assert states(stage).count(TrialState.COMPLETE) == ended and TrialState.FAIL not in states(stage)
    assert read_early(stage.workspace.study, "flow") == EarlyEnd("minutes", 0.25)
    assert f"flow stage: {ended} of 60 trials" in left_out(stage.workspace, "flow", stage.experiment.search)
    before = {row["trial"] for row in records.read_rows(stage.workspace.trials) if row["status"] != "running"}

    again = resume(tmp_path, "--search.minutes", "null", "--search.flow.trials", ended + 4)
    cost = run_search(again, trainable=Waiting)
    assert cost.trials == 4  # what had ended was not run again
    assert states(again) == [TrialState.COMPLETE] * (ended + 4)
    assert read_early(again.workspace.study, "flow") is None
    rows = [row for row in records.read_rows(again.workspace.trials) if row["step"] == again.rungs[-1]]
    assert len(rows) == ended + 4 and {row["status"] for row in rows} == {"finished"}
    assert before < {row["trial"] for row in rows}


@pytest.mark.parametrize("scheduler", ["asha", pytest.param("halving", marks=pytest.mark.long)])
def test_without_any_time_the_default_has_a_score(two_cpus, tmp_path, scheduler):
    stage = begin(tmp_path, **{"search.flow.trials": 6, "search.scheduler": scheduler, "search.minutes": 0.001})
    run_search(stage, trainable=Waiting, budget=budget(0.06))
    rows = [row for row in records.read_rows(stage.workspace.trials) if row["objective"] is not None]
    assert "flow-00" in {row["trial"] for row in rows}
    if scheduler == "asha":
        assert 1 <= ended_trials(stage.workspace.study, "flow") <= 2  # those that ran side by side
    assert read_early(stage.workspace.study, "flow").reason == "minutes"
    run_search(resume(tmp_path, "--search.minutes", "null"), trainable=Waiting)
    assert len(states(stage)) == 6 and set(states(stage)) == {TrialState.COMPLETE}


def test_patience_ends_a_stage_until_it_is_raised(two_cpus, tmp_path):
    options = {"search.flow.trials": 12, "search.scheduler": "none", "search.patience": 2, "search.max_concurrent": 1}
    stage = begin(tmp_path, **options)
    run_search(stage, trainable=Waiting)
    assert ended_trials(stage.workspace.study, "flow") == 7 + 2  # the first seven are drawn at random
    assert run_search(resume(tmp_path, "--search.flow.trials", 14), trainable=Waiting) is None
    assert ended_trials(stage.workspace.study, "flow") == 9
    run_search(resume(tmp_path, "--search.patience", 4), trainable=Waiting)
    assert ended_trials(stage.workspace.study, "flow") == 8 + 4  # of fourteen trials, eight are drawn at random
    run_search(resume(tmp_path, "--search.patience", "null"), trainable=Waiting)
    assert states(stage) == [TrialState.COMPLETE] * 14


MINUTES = 2.5
SLACK = 0.75
"""Minutes by which the refits and the evaluation may exceed what was kept for them: on a machine that other programs
use, they take longer than expected."""


@pytest.mark.long
def test_a_bounded_pipeline_ends_with_a_predictor_in_its_time_and_resume_completes_it(two_cpus, tmp_path, capfd):
    storage, workspace = tmp_path / "storage", Workspace(tmp_path / "storage", "x")
    values = TINY | {
        "autoencoder.path": str(raytools.save_autoencoder(tmp_path / "autoencoder")),
        **{"search.flow.trials": 150, "search.diffusion.trials": 150, "search.flow.steps": 180, "search.top_k": 1},
        **{"search.finalist_seeds": 1, "search.scheduler": "none", "search.rungs": 1},
    }

    def command(*argv):
        code = outcome(pipeline.main, "pipeline.py", ["--storage", storage, "--name", "x", *argv])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    began = time.monotonic()
    out = command(*flags(values | {"search.minutes": MINUTES}))
    minutes = (time.monotonic() - began) / 60
    ended = {name: ended_trials(workspace.study, name) for name in ("flow", "diffusion")}
    if minutes > MINUTES + SLACK:  # a slow machine, on which even the least takes longer
        assert f"not {MINUTES}; with one trial in each stage, this search takes at least about" in out
        assert max(ended.values()) <= 2  # those that ran side by side
    for name, count in ended.items():
        line = (
            f"{name} stage: {count} of 150 trials, its share of search.minutes (2.5) is used up; extend with --resume"
        )
        assert 1 <= count < 150 and line in out
        assert line in (workspace.evaluation / "report.html").read_text()
    assert (workspace.best / "manifest.json").is_file()
    scored = {row["split"] for row in records.read_rows(workspace.evaluation / "combinations.parquet")}
    assert scored == {"validation", "test"}
    models = [p for name in REFERENCE_COMPONENTS for f in read_finalists(workspace, name)
              if (p := workspace.run(name, f.model) / "model.safetensors").exists()]  # fmt: skip
    written = {path: path.stat().st_mtime_ns for path in models}

    more = {f"search.{name}.trials": count + 2 for name, count in ended.items()}
    out = command("--resume", "--search.minutes", "null", *flags(more))
    assert "used up" not in out
    for name, count in ended.items():
        stage = Stage(workspace.experiment(), workspace, name)
        assert states(stage, name) == [TrialState.COMPLETE] * (count + 2)
    assert {path: path.stat().st_mtime_ns for path in models} == written  # what was retrained stays
