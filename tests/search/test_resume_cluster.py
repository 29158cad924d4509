"""--resume with real trainings: a search that is changed, extended and in which trials fail; and failing processes."""

import os
import signal
from functools import partial

import optuna
import pytest
from optuna.trial import TrialState
from ray import tune as ray_tune

from raypipe import tune
from raypipe.report.view import open_search
from raypipe.search import records
from raypipe.search.finalists import read_finalists
from raypipe.search.study import known_trials, open_storage, trial_name
from raypipe.search.tuner import run_search
from raypipe.workspace.layout import Workspace
from tests import raytools
from tests.raytools import TINY, flags, outcome, started, wait_for
from tests.search.simulated import begin
from tests.test_survival import check_kept, kept_rows, saved_step, study

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.long]
optuna.logging.set_verbosity(optuna.logging.ERROR)


def trained(workspace, names):
    """Every file of these trials, with the time of its last change."""
    folders = [path for name in names for path in (workspace.run("flow", name), workspace.run("flow", f"{name}.log"))]
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def kill_half_way(process, head, workspace):
    """SIGKILL a search and its process group once a trial has ended and another has a checkpoint; the ended ones."""

    def half_way():
        assert process.popen.poll() is None, process.err[-3000:]
        known = study(workspace)
        ended = [name(t) for t in known if t.state.is_finished()]
        return any(saved_step(workspace, name(t)) for t in known if not t.state.is_finished()) and ended

    ended = wait_for(half_way, 300)
    os.killpg(process.popen.pid, signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    wait_for(lambda: not head.trials(), 60)
    return [name(t) for t in study(workspace) if t.state.is_finished()] or ended


def name(trial):
    return trial_name("flow", trial.number)


def test_kill_change_extend_fail_and_resume_again(head, two_cpus, tmp_path, capfd, caplog):
    storage, workspace = tmp_path / "storage", Workspace(tmp_path / "storage", "x")
    path = raytools.save_autoencoder(tmp_path / "autoencoder")
    short = {
        "search.flow.steps": 120,
        "search.rungs": 2,
        "train.checkpoint_every": 10,
        "search.finalist_seeds": 1,
        "search.top_k": 1,
        "autoencoder.path": str(path),
    }

    def command(*argv):
        code = outcome(partial(tune.search, "flow"), "tune_flow.py", ["--storage", storage, "--name", "x", *argv])
        return code, capfd.readouterr().err

    def trials():
        return known_trials(open_storage(workspace.study), "flow")

    begin_flags = flags(TINY | short | {"search.flow.trials": 3})
    argv = ["experiments/tune_flow.py", "--name", "x", *begin_flags]
    with started(tmp_path / "first", argv, storage, **head.variables) as process:
        ended = kill_half_way(process, head, workspace)
    states = {row["trial"]: row["status"] for row in open_search(workspace.folder).trials.to_pylist()}
    assert all(states[trial] in ("finished", "stopped") for trial in ended) and "interrupted" in states.values()
    files = trained(workspace, ended)
    kept = {name(t): kept_rows(workspace, name(t)) for t in trials() if saved_step(workspace, name(t))}
    assert files and set(ended) < set(kept)
    code, err = command("--resume")
    assert code == 0, err
    assert [name(trial) for trial in trials()] == ["flow-00", "flow-01", "flow-02"]
    assert files == trained(workspace, ended)  # the killed one went on, these were left alone
    check_kept(workspace, kept)  # from its last checkpoint
    assert {saved_step(workspace, name(trial)) for trial in trials()} <= {40, 120}  # the rungs
    first = {trial.number: trial.value for trial in trials()}
    models = {p: p.stat().st_mtime_ns for p in (storage / "x" / "flow").glob("*/model.safetensors")}

    code, err = command("--resume")
    assert code == 2 and "is finished; to extend it" in err and "--trials N" in err and err.count("\n") == 1
    space = '{"train.loss": {"choices": ["mse"]}, "model.depth": {"choices": [1, 2]}}'
    change = ["--search.flow.axes", space, "--search.sampler", "random", "--search.scheduler", "halving"]
    code, err = command("--resume", "--trials", 5, *change)
    assert code == 0, err
    assert len(trials()) == 5 and first.items() <= {trial.number: trial.value for trial in trials()}.items()
    assert {trial.params["train.loss"] for trial in trials()[3:]} == {"mse"}
    assert models.items() <= {p: p.stat().st_mtime_ns for p in models}.items()

    code, err = command("--resume", "--trials", 7, "--search.flow.axes", '{"train.learning_rate": {"choices": [1e30]}}')
    assert code == 2 and "Traceback" not in err
    causes = [r.getMessage() for r in caplog.records if r.name == "raypipe.search.pipeline"]
    assert len(causes) == 1 and causes[0].startswith("flow-05, flow-06: the loss is nan by step")
    assert "all 2 new trials of the flow stage failed" in err.splitlines()[-1]
    assert [trial.state for trial in trials()[5:]] == [TrialState.FAIL] * 2
    code, err = command("--resume")
    assert code == 0, err
    assert {f.trial for f in read_finalists(workspace, "flow")} >= {"flow-00"}
    code, err = command("--resume", "--search.gpus_per_trial", 8)
    assert code == 2 and err.count("\n") == 1
    assert workspace.experiment().search.flow.trials == 7
    assert files == trained(workspace, ended)
    assert len({row["trial"] for row in records.read_rows(workspace.trials) if not row["refit"]}) == 7


class Broken(ray_tune.Trainable):
    """A trial whose process raises an error, other than a diverged training."""

    def setup(self, config, stage=None):
        self.name = config["trial"]

    def step(self):
        raise RuntimeError(f"broken in the same way, {self.name[:4]}")

    def save_checkpoint(self, checkpoint_dir):
        pass

    def load_checkpoint(self, checkpoint):
        pass


def test_trials_whose_processes_fail_are_no_pages_of_tracebacks(two_cpus, tmp_path, capfd):
    stage = begin(tmp_path, **{"search.flow.trials": 3})
    cost = run_search(stage, trainable=Broken)
    assert cost is not None and set(cost.failures) == {"flow-00", "flow-01", "flow-02"}
    assert set(cost.failures.values()) == {"RuntimeError: broken in the same way, flow"}
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert {row["status"] for row in records.read_rows(stage.workspace.trials)} == {"failed"}
    assert run_search(stage, trainable=Broken) is None  # they have ended
