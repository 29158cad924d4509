"""--resume: settings that change, extensions, kills; the last plain --resume opens the search and finishes it."""

import json
import random
import shutil
from typing import Literal, get_args, get_origin, get_type_hints

import optuna
import pytest
import yaml

from raypipe import cli, config, tune
from raypipe.config import Axis, ConfigError, Experiment, Search, SearchStage
from raypipe.config.old_names import STAGES
from raypipe.search import progress
from raypipe.search.changes import FREE
from raypipe.search.opening import open_workspace
from raypipe.search.study import VALUES, known_trials, open_storage, set_closed
from raypipe.workspace.layout import Workspace
from tests.raytools import TINY
from tests.search import simulated
from tests.search.simulated import begin, ended, files, resume, rows

optuna.logging.set_verbosity(optuna.logging.ERROR)

NOISE = {"low": 0.01, "high": 0.4, "log": True, "zero": True}
LOSS = {"choices": ["nll", "mse"]}
TIME = {"choices": [False, True]}
RATE = {"low": 1e-3, "high": 5e-3, "log": True}
AXES = {"train.noise_std": NOISE, "train.loss": LOSS, "model.time_input": TIME, "train.learning_rate": RATE}
"""The default space of flows."""
SPACES = {
    "a choice less": AXES | {"train.loss": {"choices": ["mse"]}},
    "choices in another order": AXES | {"train.loss": {"choices": ["mse", "nll"]}},
    "a narrower range": AXES | {"train.noise_std": NOISE | {"low": 0.05, "high": 0.1}},
    "a wider range": AXES | {"train.learning_rate": RATE | {"high": 2e-2}},
    "a range elsewhere": AXES | {"train.learning_rate": RATE | {"low": 1e-2, "high": 2e-2}},
    "a linear range": AXES | {"train.learning_rate": RATE | {"log": False}},
    "no zero": AXES | {"train.noise_std": NOISE | {"zero": False}},
    "choices of a range": AXES | {"train.noise_std": {"choices": [0.1, 0.2]}},
    "an axis less": {"train.noise_std": NOISE, "train.learning_rate": RATE},
    "an axis more": AXES | {"model.depth": {"low": 1, "high": 3}},
    "an axis of lists": AXES | {"evaluation.solvers": {"choices": [["euler_maruyama"], ["heun_drift"]]}},
    "a condition": AXES | {"train.learning_rate": RATE | {"when": {"train.loss": "mse"}}},
    "other axes": {"model.depth": {"choices": [2, 3]}, "sde.delta": {"low": 1e-4, "high": 1e-2, "log": True}},
}
TRIALS = 8


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A search that was killed: trials have ended, others run, before and after their first rung, others wait."""
    storage = tmp_path_factory.mktemp("interrupted")
    stage = begin(storage, **{"search.flow.trials": TRIALS})
    simulated.search(stage, random.Random(1), events=9)
    states = {trial.state.name for trial in known_trials(open_storage(stage.workspace.study), "flow")}
    assert states == {"COMPLETE", "RUNNING", "WAITING"}
    return storage


@pytest.fixture
def storage(interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path / "storage")
    return tmp_path / "storage"


def finish(storage):
    """A plain --resume, to the end. No trial that has ended is trained again, or changes."""
    before = ended(Workspace(storage, "x"))
    stage = resume(storage)
    trained = simulated.search(stage, random.Random(0))
    after = ended(stage.workspace)
    assert not set(trained) & set(before)
    assert before.items() <= after.items()
    assert len(after) == max(stage.experiment.search.flow.trials, len(before))
    assert {name for name, _ in rows(stage.workspace)} == set(after)
    return stage


def others(name, hint, value):
    """Other values of a field of `search`, legal or not, by its type: a new field of a new type needs a line here."""
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if choice != value]
    if hint in (int, float, int | None, float | None):
        return [-1, 1, 3, *([0.5] if hint is float else [])]
    if name == "search.keep":
        return [-1, 1, "finalists", "all", "none"]
    if name == "search.objectives":
        return [["crps_ratio", "nfe_per_frame"], ["nfe_per_frame"], []]
    if hint == dict[str, Axis]:
        return [*SPACES.values(), {}, {"train.nose_std": NOISE}, {"train.loss": {"choices": ["huber"]}}]
    raise AssertionError(f"{name}: no values to try for {hint}")


def attempt(storage, *argv):
    """The stage, or the reason why the change is refused."""
    try:
        return resume(storage, *argv), ""
    except ConfigError as error:
        return None, str(error)


SECTIONS = (Search, SearchStage)
HINTS = {name: get_type_hints(cls)[name] for cls in SECTIONS for name in get_type_hints(cls)}


@pytest.mark.parametrize("field", [name for name, _ in config.field_names() if name.startswith("search.")])
def test_any_change_leaves_a_search_that_a_plain_resume_takes_up(storage, tmp_path, field):
    hint = HINTS[field.split(".")[-1]]
    for number, value in enumerate(others(field, hint, config.field_value(Experiment(), field))):
        copy = tmp_path / str(number) / "storage"
        shutil.copytree(storage, copy)
        before, done = files(copy), ended(Workspace(copy, "x"))
        stage, refusal = attempt(copy, f"--{field}", json.dumps(value))
        if stage is None:
            assert "search." in refusal and "\n" not in refusal
            assert files(copy) == before
        else:
            assert config.field_value(resume(copy).experiment, field) == config.field_value(stage.experiment, field)
            simulated.search(stage, random.Random(2), events=5)
        finish(copy)
        assert done.items() <= ended(Workspace(copy, "x")).items()


@pytest.mark.parametrize(
    ("sampler", "space"),
    [("tpe", space) for space in SPACES]
    + [(sampler, space) for sampler in ("gp", "nsga2", "random") for space in ("a narrower range", "other axes")],
)
def test_a_changed_space_is_searched_from_then_on_and_back(storage, space, sampler):
    known = len(known_trials(open_storage(Workspace(storage, "x").study), "flow"))
    stage = resume(storage, "--search.flow.axes", json.dumps(SPACES[space]), "--search.sampler", sampler)
    simulated.search(stage, random.Random(3))
    axes = stage.experiment.search.flow.axes
    for trial in known_trials(open_storage(stage.workspace.study), "flow"):
        assert trial.params.keys() <= axes.keys()
        values = trial.user_attrs.get(VALUES, {})
        if trial.number >= known:  # proposed in the new space
            assert values and values.keys() <= axes.keys()
            for name, value in values.items():
                axis = axes[name]
                inside = (
                    value in axis.choices
                    if axis.choices
                    else (value == 0 and axis.zero) or axis.low <= value <= axis.high
                )
                assert inside, (name, value)
    before = ended(stage.workspace)
    stage = resume(storage, "--search.flow.axes", json.dumps(AXES), "--search.flow.trials", TRIALS + 3)
    simulated.search(stage, random.Random(4))
    assert before.items() <= ended(stage.workspace).items()
    finish(storage)


def test_a_sampler_learns_from_the_trials_that_the_new_space_contains(storage):
    stage = resume(storage, "--search.flow.axes", json.dumps(SPACES["a narrower range"]))
    axis = stage.experiment.search.flow.axes["train.noise_std"]
    contained = 0
    for trial in known_trials(open_storage(stage.workspace.study), "flow"):
        if VALUES in trial.user_attrs:
            noise = trial.user_attrs[VALUES]["train.noise_std"]
            inside = axis.low <= noise <= axis.high or noise == 0
            assert ("train.noise_std" in trial.params) == inside
            assert trial.params["train.learning_rate"] == trial.user_attrs[VALUES]["train.learning_rate"]
            contained += inside
    assert contained


def test_what_the_trials_share_cannot_change_and_the_line_says_what_holds(storage):
    before = files(storage)
    with pytest.raises(ConfigError, match=r"--resume: .*model.depth is 1, not 2; .* omit the change, or start a new"):
        resume(storage, "--model.depth", 2)
    with pytest.raises(ConfigError, match=r"search.objectives is \[\"crps_ratio\"\], not \[\"crps_ratio\", \"nfe"):
        resume(storage, "--search.objectives", '["crps_ratio", "nfe_per_frame"]', "--search.rungs", 1)
    assert files(storage) == before
    finish(storage)


def test_every_free_field_exists():
    assert {name for name, _ in config.field_names()} >= FREE


def test_before_the_first_trial_all_but_the_data_can_change(tmp_path):
    begin(tmp_path)
    stage = resume(tmp_path, "--model.depth", 2, "--search.objectives", '["crps_ratio", "nfe_per_frame"]',
                   "--search.rungs", 1, "--search.flow.steps", 30)  # fmt: skip
    assert stage.experiment.model.depth == 2 and resume(tmp_path).experiment == stage.experiment
    with pytest.raises(ConfigError, match=r"demo.train_clips is 12, not 13"):
        resume(tmp_path, "--demo.train_clips", 13)
    simulated.search(stage, random.Random(0), events=4)
    finish(tmp_path)


def test_points_that_were_planned_and_not_begun_follow_the_new_space(tmp_path):
    """Even the objectives may change: the study is made anew."""
    simulated.search(begin(tmp_path), random.Random(0), events=0)
    stage = resume(tmp_path, "--search.flow.axes", json.dumps(SPACES["other axes"]),
                   "--search.objectives", '["crps_ratio", "nfe_per_frame"]', "--search.rungs", 1)  # fmt: skip
    simulated.search(stage, random.Random(0), events=1)
    (first, *_) = known_trials(open_storage(stage.workspace.study), "flow")
    assert first.user_attrs[VALUES].keys() == SPACES["other axes"].keys()
    finish(tmp_path)


def test_an_edited_config_is_taken(storage, tmp_path):
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump({"search": {"sampler": "gp", "flow": {"axes": {"train.loss": LOSS}}}}))
    stage = resume(storage, "--config", edited, "--search.seed", 5)
    search = stage.experiment.search
    assert (search.sampler, search.seed, list(search.flow.axes)) == ("gp", 5, ["train.loss"])
    assert search.flow.trials == TRIALS  # what the file does not state holds
    edited.write_text(yaml.safe_dump({"search": {"sampler": "nsga2"}, "train": {"ema": 0.5}, "model": {"depth": 3}}))
    with pytest.raises(ConfigError, match=r"model.depth is 1, not 3, train.ema is 0.95, not 0.5; this cannot change"):
        resume(storage, "--config", edited)
    assert finish(storage).experiment == stage.experiment


def with_old_names(experiment):
    """The config as earlier versions wrote it: a stage's axes alone in its section, its other settings beside it."""
    tree = config.to_dict(experiment)
    for stage in STAGES:
        settings = tree["search"].pop(stage)
        tree["search"][stage] = settings.pop("axes")
        tree["search"] |= {f"{stage}_{name}": value for name, value in settings.items()}
    return yaml.safe_dump(tree)


def test_a_config_with_old_names_is_unchanged_until_a_setting_changes(storage):
    stored, old = storage / "x" / "config.yaml", with_old_names(Workspace(storage, "x").experiment())
    stored.write_text(old)
    study = (storage / "x" / "study.log").read_bytes()
    edited = storage / "edited.yaml"
    edited.write_text(old)
    for argv in ([], ["--config", edited], ["--search.flow.trials", TRIALS], ["--search.flow_trials", TRIALS]):
        assert resume(storage, *argv).settings.trials == TRIALS
        assert stored.read_text() == old and (storage / "x" / "study.log").read_bytes() == study
    edited.write_text(yaml.safe_dump({"search": {"flow_trials": TRIALS + 1, "flow": {"train.loss": LOSS}}}))
    stage = resume(storage, "--config", edited)
    assert (stage.settings.trials, list(stage.settings.axes)) == (TRIALS + 1, ["train.loss"])
    assert yaml.safe_load(stored.read_text())["search"]["flow"]["trials"] == TRIALS + 1
    assert finish(storage).experiment == stage.experiment


@pytest.mark.parametrize("stated", ["{flow: {trials: '9'}}", "{flow_trials: '9'}"])
def test_a_number_of_trials_may_be_quoted(storage, tmp_path, stated):
    finish(storage)
    make_finished(storage, TRIALS)
    edited = tmp_path / "edited.yaml"
    edited.write_text(f"search: {stated}")
    assert resume(storage, "--config", edited).settings.trials == TRIALS + 1


def test_relative_paths_mean_the_same_with_resume(tmp_path, monkeypatch):
    """The working directory is what they are relative to; what is stored is absolute."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        (tmp_path / "shards" / split).mkdir(parents=True)
        (tmp_path / "shards" / split / "index.parquet").touch()
    paths = {"dataset.root": "shards", "autoencoder.path": "ae", "dataset.cache": "cache"}
    flags = [text for name, path in paths.items() for text in (f"--{name}", path)]
    args, overrides = cli.parse(tune.make_parser("tune", ""), flags)
    started = cli.experiment(args, overrides)
    absolute = {name: str(tmp_path / path) for name, path in paths.items()}
    assert {name: config.field_value(started, name) for name in paths} == absolute
    begin(tmp_path / "storage", **absolute)
    assert {n: config.field_value(resume(tmp_path / "storage", *flags).experiment, n) for n in paths} == absolute
    edited = tmp_path / "edited.yaml"
    edited.write_text(yaml.safe_dump({"dataset": {"root": "shards"}}))
    assert resume(tmp_path / "storage", "--config", edited).experiment.dataset.root == absolute["dataset.root"]
    monkeypatch.chdir("/")
    assert resume(tmp_path / "storage").experiment.dataset.root == absolute["dataset.root"]


@pytest.mark.parametrize("root", ["s3://bucket/set", "gs://bucket/set"])
def test_addresses_are_no_relative_paths(root):
    args, overrides = cli.parse(tune.make_parser("tune", ""), ["--dataset.root", root, "--dataset.cache", "~/c"])
    dataset = cli.experiment(args, overrides).dataset
    assert (dataset.root, dataset.cache) == (root, "~/c")


def make_finished(storage, trials):
    """Write what shows that all stages and the evaluation are finished."""
    workspace = Workspace(storage, "x")
    for component in config.COMPONENTS:
        workspace.finalists(component).parent.mkdir(exist_ok=True)
        workspace.finalists(component).write_text("[]")
        set_closed(workspace.study, component, True)
    workspace.best.mkdir(exist_ok=True)
    (workspace.best / "manifest.json").write_text("{}")


def test_a_finished_search_says_so_and_how_to_extend_it(storage):
    stage = finish(storage)
    make_finished(storage, TRIALS)
    before = files(storage)
    for argv in ([], ["--search.sampler", "gp"], ["--search.flow.trials", TRIALS]):
        with pytest.raises(
            ConfigError, match=r"--resume: the search in .*x is finished; .* larger .* with --search.flow.trials N"
        ):
            resume(storage, *argv)
    assert files(storage) == before
    assert resume(storage, "--search.flow.trials", TRIALS + 2).experiment.search.flow.trials == TRIALS + 2
    finish(storage)
    set_closed(stage.workspace.study, "flow", False)  # as the stage is begun again, until it has finalists
    assert resume(storage).experiment.search.flow.trials == TRIALS + 2
    make_finished(storage, TRIALS + 2)
    stage.workspace.finalists("flow").write_text("[ ]")  # newer than best/
    assert resume(storage).experiment.search.flow.trials == TRIALS + 2


def test_resume_with_a_name_means_that_experiment(storage, tmp_path):
    finish(storage)
    make_finished(storage, TRIALS)
    shutil.copytree(storage / "x", storage / "x-2")
    shutil.rmtree(storage / "x-2" / "best")
    with pytest.raises(ConfigError, match="is finished"):
        resume(storage)
    named = tmp_path / "named.yaml"
    named.write_text("name: x")
    args, overrides = cli.parse(
        tune.make_parser("pipeline.py", ""), ["--storage", str(storage), "--resume", "--config", str(named)]
    )
    experiment, workspace = open_workspace(args, overrides, progress.is_unfinished)
    assert experiment.name == workspace.name == "x-2"  # the latest of the name that is unfinished


CHANGES = [
    *(["--search.flow.axes", json.dumps(space)] for space in SPACES.values()),
    *(["--search.sampler", name] for name in ("tpe", "gp", "nsga2", "random")),
    *(["--search.scheduler", name] for name in ("asha", "median", "none")),
    *(["--search.rungs", rungs] for rungs in (1, 2, 3)),
    *(["--search.flow.trials", trials] for trials in (4, 6, 9, 12)),
    ["--search.objectives", '["crps_ratio", "nfe_per_frame"]'],
    ["--search.flow.steps", 40],
    ["--model.depth", 2],
    ["--search.seed", 7],
]


@pytest.mark.parametrize("seed", range(20))
def test_kill_change_extend_resume(tmp_path, seed):
    draw = random.Random(seed)
    stage = begin(tmp_path, **{"search.flow.trials": 6, "autoencoder.path": None, **TINY})
    trained, over = [], {}
    simulated.search(stage, draw, events=draw.randrange(12))
    for _ in range(8):
        over |= ended(stage.workspace)
        before = files(tmp_path)
        try:
            stage = resume(tmp_path, *(text for c in draw.sample(CHANGES, draw.randrange(3)) for text in c))
        except ConfigError:
            assert files(tmp_path) == before
            continue
        trained = simulated.search(stage, draw, events=draw.randrange(12))
        assert not set(trained) & set(over)
        now = ended(stage.workspace)
        assert over.items() <= now.items()
        if draw.random() < 0.3 and stage.workspace.study.exists():  # killed while it wrote a line
            with stage.workspace.study.open("ab") as journal:
                journal.write(b'{"op_code":6,"wor')
    stage = finish(tmp_path)
    assert over.items() <= ended(stage.workspace).items()
