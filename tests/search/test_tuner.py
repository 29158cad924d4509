"""The search of a stage: its axes, the study that outlives a process, trials that fail, interrupted searches."""

import json
import math
import re
import signal
import urllib.request
from functools import partial

import optuna
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from raypipe import checkpoint, train, tune
from raypipe.config import Axis
from raypipe.forecast.component import ComponentScorer
from raypipe.search import finalists, records
from raypipe.search.changes import adapt_study
from raypipe.search.finalists import read_finalists
from raypipe.search.first_points import default_point
from raypipe.search.gauges import Gauges
from raypipe.search.space import decode, distribution
from raypipe.search.stage import Stage
from raypipe.search.study import known_trials
from raypipe.search.tuner import make_searcher, run_search
from raypipe.training.component import ComponentTraining
from raypipe.workspace.dataset import ExperimentData
from raypipe.workspace.layout import ParentModels, Workspace
from tests import raytools
from tests.raytools import TINY, flags, outcome, started, tiny, wait_for

pytestmark = pytest.mark.cluster

optuna.logging.set_verbosity(optuna.logging.ERROR)


@given(st.floats(1e-3, 1), st.floats(1.5, 1000))
def test_an_eighth_of_a_range_with_zero_stands_for_zero(low, ratio):
    axis = Axis(low=low, high=low * ratio, log=True, zero=True)
    drawn = distribution("train.noise_std", axis)
    assert isinstance(drawn, FloatDistribution) and drawn.log and drawn.high == axis.high
    assert math.log(low / drawn.low) / math.log(drawn.high / drawn.low) == pytest.approx(1 / 8)
    assert decode(axis, drawn.low) == 0
    assert decode(axis, low * 0.999) == 0
    assert decode(axis, low) == low
    assert decode(axis, axis.high) == axis.high


def test_axes_become_the_distributions_of_their_fields():
    assert distribution("train.loss", Axis(choices=["nll", "mse"])) == CategoricalDistribution(["nll", "mse"])
    assert distribution("train.batch_size", Axis(low=4, high=16)) == IntDistribution(4, 16)
    rate = Axis(low=1e-3, high=5e-3, log=True)
    assert distribution("train.learning_rate", rate) == FloatDistribution(1e-3, 5e-3, log=True)
    assert decode(rate, 1e-4) == 1e-4  # zero does not belong to it
    assert decode(Axis(choices=[False, True]), False) is False


def test_the_published_default_is_a_point_of_the_space():
    flow = default_point(tiny(), "flow")
    assert flow == {
        "train.noise_std": 0.1,
        "train.loss": "nll",
        "model.time_input": False,
        "train.learning_rate": tiny().train.learning_rate,
    }
    assert default_point(tiny(), "diffusion")["train.loss"] == "regression"
    elsewhere = tiny(
        **{"search.flow.axes": {"train.noise_std": {"low": 0.2, "high": 0.4}, "model.depth": {"choices": [2]}}}
    )
    assert default_point(elsewhere, "flow") == {"train.noise_std": 0.2, "model.depth": 2}  # as near as it gets


# ---- the study


def open_storage(path):
    return JournalStorage(JournalFileBackend(str(path)))


def make_search(path, **values):
    """As run_search does. path: of the journal of an experiment."""
    stage = Stage(tiny(**values), Workspace(path.parent.parent, path.parent.name), "flow")
    adapt_study(stage.workspace, "flow", stage.experiment, stage.experiment)
    return make_searcher(stage, open_storage(path))


def test_the_first_trial_is_the_published_default_and_the_next_are_not(tmp_path):
    search = make_search(tmp_path / "study.log")
    first, second = search.suggest("a"), search.suggest("b")
    assert first == {"trial": "flow-00", "values": default_point(tiny(), "flow"), "reported": []}
    assert second["trial"] == "flow-01" and second["values"] != first["values"]


def test_a_search_takes_up_what_ran_and_never_what_ended(tmp_path):
    search = make_search(tmp_path / "study.log")
    _, running, other = (search.suggest(trial) for trial in "abc")
    search.on_trial_complete("a", {"objective": 0.7, "train_step": 18, "failure": None})
    search.on_trial_complete("c", {"objective": math.inf, "failure": "the loss is nan by step 9"})
    del search

    again = make_search(tmp_path / "study.log")
    assert again.ended == 2
    assert again.suggest("d") == running
    fresh = again.suggest("e")
    assert fresh["trial"] == "flow-03"
    assert fresh["values"] not in [running["values"], other["values"], default_point(tiny(), "flow")]
    again.on_trial_complete("d", {"objective": 0.6, "train_step": 18, "failure": None})
    trials = optuna.load_study(study_name="flow", storage=open_storage(tmp_path / "study.log")).get_trials()
    states = [trial.state for trial in trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.value for trial in trials] == [0.7, 0.6, None, None]


def test_a_trial_cut_off_while_it_was_proposed_is_proposed_to_its_end(tmp_path):
    """It keeps the values that it had; in place of one of axes that are searched no more, another is proposed."""
    search = make_search(tmp_path / "study.log")
    search.suggest("a")
    study = optuna.load_study(study_name="flow", storage=open_storage(tmp_path / "study.log"))
    asked = study.ask({"train.loss": CategoricalDistribution(["nll", "mse"])})
    study.enqueue_trial({"model.depth": 2})
    search = make_search(tmp_path / "study.log")
    found = [search.suggest(trial) for trial in "abcd"]
    assert [trial["trial"] for trial in found] == [f"flow-0{i}" for i in range(4)]
    assert all(trial["values"].keys() == tiny().search.flow.axes.keys() for trial in found)
    assert found[asked.number]["values"]["train.loss"] == asked.params["train.loss"]
    known = known_trials(open_storage(tmp_path / "study.log"), "flow")
    assert search.ended == 0 and {trial.state for trial in known[:4]} == {TrialState.RUNNING}


def test_a_rung_that_is_reported_twice_counts_once(tmp_path):
    search = make_search(tmp_path / "study.log")
    search.suggest("a")
    search.on_trial_result("a", {"objective": 0.7, "train_step": 6})
    search.on_trial_result("a", {"objective": 0.9, "train_step": 6})
    search.on_trial_result("a", {"objective": math.inf, "train_step": 18})
    trial = optuna.load_study(study_name="flow", storage=open_storage(tmp_path / "study.log")).get_trials()[0]
    assert trial.intermediate_values == {6: 0.7}


CONDITIONAL = {
    "search.diffusion.axes": {
        "train.loss": {"choices": ["regression", "nll"]},
        "train.noise_std": {"low": 0.01, "high": 0.4, "log": True, "zero": True},
        "model.logit_range": {"choices": [[-9, 1], [-6, 2]], "when": {"train.loss": "regression"}},
        "train.batch_size": {"low": 4, "high": 16, "when": {"train.loss": ["nll"]}},
    }
}


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2", "random"])
def test_every_sampler_proposes_points_of_the_space_and_no_other(tmp_path, sampler):
    """Axes with conditions stand where these hold, and only there; a trial that was cut off is taken up as it was."""
    experiment = tiny(**CONDITIONAL, **{"search.sampler": sampler, "search.diffusion.trials": 12})
    stage = Stage(experiment, Workspace(tmp_path, "x"), "diffusion")
    search, seen = make_searcher(stage, open_storage(tmp_path / "study.log")), []
    for i in range(12):
        found = search.suggest(str(i))
        seen.append(found["values"])
        if i < 11:
            noise = found["values"]["train.noise_std"]
            search.on_trial_complete(str(i), {"objective": 0.5 + noise, "train_step": 12, "failure": None})
    assert seen[0]["train.loss"] == "regression" and seen[0]["model.logit_range"] in ([-9, 1], (-9.0, 1.0))
    for values in seen:
        own = {"regression": "model.logit_range", "nll": "train.batch_size"}[values["train.loss"]]
        assert set(values) == {"train.loss", "train.noise_std", own}
        stage.configure(values)  # every one is a config
    assert {values["train.loss"] for values in seen} == {"regression", "nll"}
    assert len({values["train.noise_std"] for values in seen}) > 6
    again = make_searcher(stage, open_storage(tmp_path / "study.log"))
    assert again.ended == 11 and again.suggest("x") == found


def test_two_objectives_are_both_told(tmp_path):
    two = {"search.objectives": ["crps_ratio", "nfe_per_frame"], "search.rungs": 1}
    steps = {"search.flow.axes": {"evaluation.steps": {"choices": [[1], [4]]}}}
    stage = Stage(tiny(**two, **steps), Workspace(tmp_path, "x"), "flow")
    search = make_searcher(stage, open_storage(tmp_path / "study.log"))
    assert search.suggest("a")["values"] == {"evaluation.steps": [1]}
    result = {"objective": 0.7, "nfe_per_frame": 2, "train_step": 18, "failure": None}
    search.on_trial_result("a", result)
    search.on_trial_complete("a", result)
    trial = optuna.load_study(study_name="flow", storage=open_storage(tmp_path / "study.log")).get_trials()[0]
    assert trial.values == [0.7, 2]
    again = make_searcher(stage, open_storage(tmp_path / "study.log"))
    assert [(past.config["trial"], past.scores) for past in again.past()] == [("flow-00", {18: 0.7})]


# ---- one Ray for the rest, with the two CPUs of a small machine


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    root = tmp_path_factory.mktemp("search") / "storage"
    raytools.save_autoencoder(root.parent / "autoencoder")
    return root


@pytest.fixture(scope="module")
def values(storage):
    return TINY | {"autoencoder.path": str(storage.parent / "autoencoder")}


def make_stage(storage, values, name, **more):
    experiment = tiny(**values | more | {"name": name})
    workspace = Workspace(storage, name)
    train.prepare(experiment, workspace)
    return Stage(experiment, workspace, "flow")


@pytest.fixture(scope="module")
def failing(two_cpus, storage, values):
    """A search of three: one was finished and one, whose loss is soon not a number, was running when it was cut off."""
    axis = {"train.learning_rate": {"choices": [3e-3, 1e30]}, "train.noise_std": {"low": 0.05, "high": 0.3}}
    stage = make_stage(storage, values, "failing", **{"search.flow.axes": axis, "search.rungs": 1})
    space = {name: distribution(name, axis) for name, axis in stage.experiment.search.flow.axes.items()}
    study = optuna.create_study(study_name="flow", storage=open_storage(stage.workspace.study))
    for rate, noise in [(3e-3, 0.1), (1e30, 0.2), (3e-3, 0.3)]:
        study.enqueue_trial({"train.learning_rate": rate, "train.noise_std": noise})
    study.tell(study.ask(space), 0.9)
    study.ask(space)
    run_search(stage)
    return stage


@pytest.mark.slow
def test_after_a_search_ctrl_c_is_not_taken_for_one_to_the_search(failing):
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_a_trial_that_fails_is_recorded_and_the_search_goes_on(failing):
    rows = {row["trial"]: row for row in records.read_rows(failing.workspace.trials)}
    assert sorted(rows) == ["flow-01", "flow-02"]
    bad, good = rows["flow-01"], rows["flow-02"]
    assert (bad["status"], bad["objective"], bad["noise_std"]) == ("failed", None, 0.2)
    assert "the loss is" in bad["error"] or "not finite" in bad["error"]
    assert (good["status"], good["error"], good["noise_std"]) == ("finished", None, 0.3)
    assert good["objective"] > 0 and good["objective_se"] > 0
    assert [trial.name for trial in finalists.last_rungs(list(rows.values()), "flow")] == ["flow-02"]
    trials = optuna.load_study(study_name="flow", storage=open_storage(failing.workspace.study)).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert trials[2].value == pytest.approx(good["objective"])


@pytest.mark.slow
def test_optuna_dashboard_and_tensorboard_have_what_a_trial_was_and_cost(failing):
    (good,) = [row for row in records.read_rows(failing.workspace.trials) if row["trial"] == "flow-02"]
    study = optuna.load_study(study_name="flow", storage=open_storage(failing.workspace.study))
    told = study.get_trials()[2].user_attrs
    assert study.metric_names == ["crps_ratio"] and told["folder"] == "flow/flow-02"
    for name in ("nfe_per_frame", "spread_skill", "seconds"):
        assert told[name] == good[name] > 0
    board = EventAccumulator(str(failing.workspace.folder / f"{told['folder']}.log"))
    board.Reload()
    content = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert {name: value.number_value for name, value in values.items()} == json.loads(good["values"])
    assert board.Scalars("objective")[-1].value == pytest.approx(good["objective"])


@pytest.mark.slow
def test_ray_metrics_have_the_best_score_the_trials_by_state_and_the_speed(failing):
    """The agent of a node, which Prometheus asks, hears of them within some ten seconds."""
    Gauges("fast", "flow").show([], 2, 12.5)  # as while trials run
    address = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"

    def shown():
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        speeds = {
            re.search('experiment="(.*?)"', line)[1]: float(line.split()[-1])
            for line in lines
            if "raypipe_steps_per_second{" in line and 'stage="flow"' in line
        }
        found = [line for line in lines if "raypipe_" in line and 'experiment="failing"' in line]
        states = {
            re.search('[{,]state="(.*?)"', line)[1]: float(line.split()[-1]) for line in found if "_trials" in line
        }
        best = [float(line.split()[-1]) for line in found if "_best_" in line]
        fast = (speeds.get("failing"), speeds.get("fast")) == (0.0, 12.5)
        return fast and best and states == {"running": 0, "finished": 1, "stopped": 0, "failed": 1} and best[0]

    rows = records.read_rows(failing.workspace.trials)
    assert wait_for(shown, 60) == pytest.approx(min(row["objective"] for row in rows if row["objective"] is not None))


@pytest.mark.slow
def test_the_objective_is_the_forecast_not_the_training_loss(failing):
    (good,) = [row for row in records.read_rows(failing.workspace.trials) if row["trial"] == "flow-02"]
    folder = failing.workspace.run("flow", "flow-02")
    score = records.read_score(folder, failing.rungs[-1])
    assert good["objective"] == pytest.approx(score.crps.mean() / score.reference.mean())
    losses = [json.loads(line)["loss"] for line in (folder.with_name("flow-02.log") / "metrics.jsonl").open()]
    assert abs(losses[-1] - good["objective"]) > 1e-3
    assert checkpoint.read_meta(folder).step == failing.rungs[-1]


@pytest.mark.slow
def test_trials_of_two_workers_finish_on_two_cpus(two_cpus, storage, values):
    """Each is a TorchTrainer; what launches it may not take the CPUs that its workers need."""
    one_trial = {"search.flow.trials": 1, "search.rungs": 1, "search.workers_per_trial": 2}
    stage = make_stage(storage, values, "both", **one_trial)
    run_search(stage)
    (row,) = records.read_rows(stage.workspace.trials)
    assert (row["status"], row["step"], row["error"]) == ("finished", TINY["search.flow.steps"], None)

    experiment = stage.configure(default_point(stage.experiment, "flow"))
    data = ExperimentData(experiment, stage.workspace)
    training = ComponentTraining(experiment, data, ParentModels())  # the same without Ray
    training.advance(TINY["search.flow.steps"], lambda progress: None)
    alone = ComponentScorer(experiment, data, ParentModels())("flow", training.model)
    assert row["objective"] == pytest.approx(alone.score.ratio.value, rel=1e-3)


@pytest.mark.slow
@pytest.mark.long
def test_with_two_objectives_all_that_are_best_for_their_cost_go_on(two_cpus, storage, values):
    """From the command to the finalists, with the sampler that is made for it; every trial integrates by its steps."""
    two = {
        "search.objectives": ["crps_ratio", "nfe_per_frame"],
        "search.scheduler": "none",
        "search.sampler": "nsga2",
        "search.flow.axes": {
            "evaluation.steps": {"choices": [[1], [2], [4]]},
            "train.loss": {"choices": ["nll", "mse"]},
        },
        "search.flow.trials": 4,
        "search.top_k": 1,
        "search.finalist_seeds": 1,
        "search.margin": 10.0,
    }
    argv = ["--storage", storage, "--name", "two", *flags(values | two)]
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", argv) == 0
    workspace = Workspace(storage, "two")
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"] and row["step"] == 18]
    assert len(rows) == 4
    for row in rows:
        assert row["nfe_per_frame"] == json.loads(row["values"])["evaluation.steps"][0]  # a flow is one call a step
    ranked = finalists.last_rungs(rows, "flow")
    assert {trial.name for trial in ranked if not beaten(trial, ranked)} == {
        t.name for t in finalists.pareto_front(ranked)
    }
    assert {trial.name for trial in finalists.pareto_front(ranked)} <= {
        f.trial for f in read_finalists(workspace, "flow")
    }
    refits = {r["trial"][: -len("-s0")]: r for r in records.read_rows(workspace.trials) if r["refit"]}
    searched = {row["trial"]: row for row in rows}
    assert all(row["nfe_per_frame"] == searched[name]["nfe_per_frame"] for name, row in refits.items())


def beaten(trial, ranked):
    """Whether another one is better at no more network evaluations, or as good at fewer."""
    own = (trial.objective, trial.row["nfe_per_frame"])
    others = [(other.objective, other.row["nfe_per_frame"]) for other in ranked]
    return any(o[0] <= own[0] and o[1] <= own[1] and o != own for o in others)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--trials", "-3"], "argument --trials: must be a positive integer, not -3"),
        (["--trails", "3"], "unknown argument '--trails'; did you mean '--trials'?"),
        (
            ["--search.flow_trails", "3"],
            "unknown argument '--search.flow_trails'; did you mean '--search.flow.trials'?",
        ),
        (["--search.flow.trials", "0"], "search.flow.trials: must be at least 1, not 0"),
        (["--trials", "3", "--search.flow.trials", "4"], "--trials: sets the same field as --search.flow.trials"),
        (["--resume", "--name", "nothing"], "--resume: no experiment 'nothing' in"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, capfd, argv, says):
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", [*argv, "--storage", tmp_path / "storage"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("tune_flow.py: error: ") and says in err
    assert raytools.listing(tmp_path) == []


def test_a_stage_without_trials_is_not_searched(tmp_path, capfd):
    argv = ["--storage", tmp_path, "--search.joint.trials", 0]
    assert outcome(partial(tune.search, "joint"), "tune_joint.py", argv) == 2
    said = "tune_joint.py: error: search.joint.trials: 0, so there is nothing to search; give --trials N\n"
    assert capfd.readouterr().err == said
    assert list(tmp_path.iterdir()) == []


# ---- Ctrl-C


def states(workspace):
    if not workspace.study.exists():
        return []
    return [t.state for t in optuna.load_study(study_name="flow", storage=open_storage(workspace.study)).get_trials()]


def ended(workspace):
    return {row["trial"] for row in records.read_rows(workspace.trials) if row["status"] != "running"}


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupted_search_goes_on_where_it_was(head, two_cpus, storage, values, tmp_path, capfd):
    trials, workspace = 5, Workspace(storage, "demo")
    one = {
        "search.flow.trials": trials,
        "search.finalist_seeds": 1,
        "search.top_k": 1,
        "search.flow.steps": 150,
        "search.rungs": 1,
    }
    argv = ["experiments/tune_flow.py", *flags(values | one)]
    with started(tmp_path / "first", argv, storage, **head.variables) as process:
        wait_for(lambda: process.popen.poll() is not None or len(ended(workspace)) >= 2, 300)
        process.interrupt()
        assert process.finish(120) == 130, process.err
        assert (
            "tune_flow.py: interrupted; run the same command with --resume to continue" in process.err.splitlines()[-1]
        )
        assert "Traceback" not in process.err
        process.gone()
    raytools.check_files(workspace.folder)
    before = ended(workspace)
    assert 2 <= len(before) < trials
    assert TrialState.RUNNING in states(workspace)
    running = {f"flow-{i:02d}" for i, state in enumerate(states(workspace)) if state == TrialState.RUNNING}
    models = [workspace.run("flow", name) / "model.safetensors" for name in before]
    written = {path: path.stat().st_mtime_ns for path in models}

    again = [*map(str, argv[1:]), "--resume", "--storage", str(storage)]
    assert outcome(partial(tune.search, "flow"), "tune_flow.py", again) == 0
    assert states(workspace) == [TrialState.COMPLETE] * trials
    rows = [row for row in records.read_rows(workspace.trials) if not row["refit"]]
    assert sorted(row["trial"] for row in rows) == [f"flow-{i:02d}" for i in range(trials)]
    assert {row["status"] for row in rows} == {"finished"}
    assert running <= {row["trial"] for row in rows}
    assert {path: path.stat().st_mtime_ns for path in models} == written
    assert workspace.finalists("flow").is_file()
    assert "next   python experiments/tune_denoiser.py" in capfd.readouterr().out
    assert sorted(p.name for p in storage.iterdir() if p.name.startswith("demo")) == ["demo"]
