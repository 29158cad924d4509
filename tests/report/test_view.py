"""`raypipe.open_search` on a finished search, on one cut off in the middle, and on one that runs or has just begun."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser

import optuna
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import raypipe
from raypipe import checkpoint, config
from raypipe.common.errors import UserError
from raypipe.forecast.manifest import CONSTANT, JOINT, Manifest, write_manifest
from raypipe.models.components import build_component
from raypipe.report.view import COLUMNS
from raypipe.search import records
from raypipe.search.early import EARLY
from raypipe.search.stage import Stage
from raypipe.search.study import open_storage
from raypipe.workspace.claims import LOCK, hold
from raypipe.workspace.layout import Workspace
from tests.raytools import ROOT, TINY, listing, tiny
from tests.recordedtools import BEGUN, cut, unpack


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return unpack(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def killed(tmp_path):
    return cut(tmp_path / "storage")


def by_trial(table):
    return {row["trial"]: row for row in table.to_pylist()}


def states(view):
    return {row["trial"]: row["status"] for row in view.trials.to_pylist() if not row["refit"]}


def test_the_trials_of_a_finished_search_are_those_of_its_table_at_their_last_rung(finished):
    view = raypipe.open_search(finished.folder)
    written = pq.read_table(finished.trials).to_pylist()
    last = {row["trial"]: row for row in sorted(written, key=lambda row: row["step"])}
    rows = by_trial(view.trials)
    assert view.trials.num_rows == len(rows) and rows.keys() == last.keys()
    assert all(rows[name][key] == value for name, row in last.items() for key, value in row.items())
    assert view.state == "finished"
    assert {name: view.trials.schema.field(name).type for name in COLUMNS} == dict(COLUMNS)


def test_the_best_come_first_and_a_curve_has_every_rung(finished):
    view = raypipe.open_search(str(finished.folder))
    best = view.best(3).to_pylist()
    objectives = sorted(row["objective"] for row in view.trials.to_pylist())
    assert [row["objective"] for row in best] == objectives[:3]
    assert view.best(1000).num_rows == view.trials.num_rows
    written = [row for row in pq.read_table(finished.trials).to_pylist() if row["trial"] == "flow-00"]
    assert view.curve("flow-00").to_pydict() == {
        name: [row[name] for row in written] for name in ("step", "objective", "objective_se")
    }
    assert view.curve("flow-00")["step"].to_pylist() == [6, 18]
    with pytest.raises(UserError, match="n: must be at least 1, not 0"):
        view.best(0)


def test_pandas_reads_the_trials(finished):
    pandas = pytest.importorskip("pandas")
    frame = raypipe.open_search(finished.folder).trials.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and frame.groupby("stage").size().to_dict()["denoiser"] == 3


def test_the_config_of_a_trial_is_that_with_which_it_was_trained(finished):
    view, experiment = raypipe.open_search(finished.folder), finished.experiment()
    for name, component in (("flow-02", "flow"), ("denoiser-00", "denoiser"), ("diffusion-01", "diffusion")):
        values = json.loads(by_trial(view.trials)[name]["values"])
        assert view.config(name) == Stage(experiment, finished, component).configure(values)
        assert view.config(name).train.noise_std == checkpoint.read_meta(finished.run(component, name)).noise_std
    for name, seed in (("flow-02-s0", 0), ("flow-02-s1", 1), ("diffusion-00-s1", 1), ("published-s1", 1)):
        component = by_trial(view.trials)[name]["stage"]
        train, meta = view.config(name).train, checkpoint.read_meta(finished.run(component, name))
        assert (train.noise_std, train.loss, train.random_seed) == (meta.noise_std, meta.loss, meta.seed)
        assert train.steps == meta.step == TINY[f"search.{component}.refit_steps"]
        assert train.random_seed == seed
    assert view.config("published-s0").train.flow == "flow-00-s1"


def predict(predictor):
    frames = torch.rand(1, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return predictor.predict(frames, 2, members=2, seed=1)


def test_a_flow_predicts_as_the_chosen_combination_does_without_its_noise(finished, tmp_path):
    quiet = shutil.copytree(finished.best, tmp_path / "best")
    manifest = json.loads((quiet / "manifest.json").read_text())
    assert (manifest["flow"], manifest["diffusion"]) == ("flow-02", CONSTANT)
    (quiet / "manifest.json").write_text(json.dumps(manifest | {"constant_std": [0.0] * 4}))
    assert checkpoint.weights_hash(quiet / "flow") == checkpoint.weights_hash(finished.run("flow", "flow-02-s1"))
    made = predict(raypipe.open_search(finished.folder).predictor("flow-02-s1"))
    torch.testing.assert_close(made, predict(raypipe.load_predictor(quiet)))
    assert torch.equal(made[:, 0], made[:, 1])


def test_a_joint_network_predicts_with_the_noise_that_was_fitted_for_its_score(tmp_path):
    workspace = unpack(tmp_path / "storage")
    (workspace.folder / "config.yaml").write_text(
        yaml.safe_dump(config.to_dict(tiny(**{"name": "demo", "search.joint.trials": 1})))
    )
    stage = Stage(workspace.experiment(), workspace, "joint")
    values = {"train.noise_std": 0.03}
    experiment = stage.configure(values)
    torch.manual_seed(0)
    module = build_component("joint", experiment.model, 4, experiment.sde.noise)
    meta = checkpoint.Meta(4, component="joint", model=experiment.model, noise=experiment.sde.noise)
    checkpoint.save_component(workspace.run("joint", "joint-00"), module, meta)
    row = records.rung_row(experiment, "joint-00", 6, flow=None, score=None, default=None)
    row |= {"status": "finished", "refit": False, "magnitude": 0.5, "values": json.dumps(values)}
    records.write_rows(workspace.trials, [*records.read_rows(workspace.trials), row])

    best = tmp_path / "best"
    shutil.copytree(workspace.autoencoder, best / "autoencoder")
    shutil.copytree(workspace.run("joint", "joint-00"), best / "joint")
    write_manifest(best / "manifest.json", Manifest("joint-00", 1.0, 0.5, 1, 4, 32, 1, "demo", diffusion=JOINT), {})
    made = predict(raypipe.open_search(workspace.folder).predictor("joint-00"))
    assert torch.equal(made, predict(raypipe.load_predictor(best)))
    assert not torch.equal(made[:, 0], made[:, 1])


def test_what_predicts_nothing_by_itself_and_what_there_is_not_is_refused_in_a_line(finished, killed):
    view, rest = raypipe.open_search(finished.folder), raypipe.open_search(killed.folder)
    for refused, why in (
        (lambda: view.predictor("denoiser-00"), "denoiser-00: a denoiser makes no forecast without a flow"),
        (lambda: view.predictor("published-s0"), "published-s0: a diffusion makes no forecast without a flow"),
        (lambda: view.predictor("flow02"), "no trial 'flow02'; did you mean 'flow-02'?"),
        (lambda: view.curve("x"), "no trial 'x'; the trials are flow-00, "),
        (lambda: raypipe.open_search(finished.folder / "none"), "none: no such folder"),
        (lambda: raypipe.open_search(finished.folder / "flow"), "flow: no search in this folder"),
    ):
        with pytest.raises(UserError) as raised:
            refused()
        assert why in str(raised.value) and "\n" not in str(raised.value)
    shutil.rmtree(killed.run("flow", "flow-01"))
    with pytest.raises(UserError, match="flow-01: no model of this trial"):
        rest.predictor("flow-01")


def test_a_killed_search_says_what_ended_what_was_cut_off_and_what_is_left(killed):
    view = raypipe.open_search(killed.folder)
    assert view.state == "not running"
    assert states(view) == {
        "flow-00": "finished", "flow-01": "stopped", "flow-02": "finished", "denoiser-00": "finished",
        "diffusion-00": "finished", "diffusion-01": "interrupted",
    }  # fmt: skip
    begun = by_trial(view.trials)["diffusion-01"]
    assert (begun["step"], begun["objective"], begun["noise_std"]) == (0, None, 0.2)
    assert view.config("diffusion-01").train.flow == BEGUN["train.flow"]
    assert view.curve("diffusion-01").num_rows == 0
    text = repr(view)
    assert "to do  diffusion: 1 trial, retraining of the finalists; evaluation" in text
    assert f"next   python experiments/pipeline.py --storage {killed.storage} --name demo --resume" in text
    assert "chosen" not in text


def test_of_a_killed_search_a_report_is_made_elsewhere_and_that_of_a_finished_one_is_named(finished, killed, tmp_path):
    made = raypipe.open_search(killed.folder).report()
    assert "diffusion-00" in made.read_text() and killed.folder not in made.parents
    shutil.rmtree(made.parent)
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    written = copy / "evaluation" / "report.html"
    written.write_text("a report")
    assert raypipe.open_search(copy).report() == written


def test_a_running_search_is_told_from_a_killed_one_by_its_lock(killed):
    view = raypipe.open_search(killed.folder)
    metrics = killed.folder / "diffusion" / "diffusion-01.log" / "metrics.jsonl"
    metrics.parent.mkdir(exist_ok=True)
    metrics.write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    with hold(killed):
        assert view.state == "running" and states(view)["diffusion-01"] == "running"
        assert f"running (process {os.getpid()} on " in repr(view)
        assert "running  diffusion-01 at step 3 of 12" in repr(view)
        assert "next" not in repr(view)
    assert (killed.folder / LOCK).is_file()
    assert view.state == "not running" and states(view)["diffusion-01"] == "interrupted"


def test_a_look_at_the_lock_keeps_nobody_from_starting_a_search(killed):
    (killed.folder / LOCK).touch()
    with (killed.folder / LOCK).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as a look does, but for longer
        timer = threading.Timer(0.1, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        with hold(killed):
            pass
        timer.join()
    with hold(killed), pytest.raises(UserError, match="is running this search"), hold(killed):
        pass


def test_what_the_study_knows_and_the_table_does_not_yet_counts(killed):
    """A kill may come between the two; trials that failed before their first rung have no row at all."""
    rows = records.read_rows(killed.trials)
    cut_off = [row | ({"status": "running"} if row["trial"] == "flow-01" else {}) for row in rows]
    records.write_rows(killed.trials, [row for row in cut_off if row["trial"] != "diffusion-00"])
    view = raypipe.open_search(killed.folder)
    assert states(view)["flow-01"] == "stopped" and states(view)["diffusion-00"] == "finished"
    killed.study.unlink()
    assert states(view)["flow-01"] == "interrupted" and "diffusion-00" not in states(view)


@pytest.mark.parametrize(("reason", "left"), [("patience", 0), ("minutes", 2)])
def test_a_stage_that_ended_early_has_trials_left_if_more_time_would_run_them(finished, tmp_path, reason, left):
    workspace = Workspace(shutil.copytree(finished.storage, tmp_path / "storage"), "demo")
    more = {"name": "demo", "search.flow.trials": 5, "search.patience": 1}
    (workspace.folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(tiny(**more))))
    study = optuna.load_study(study_name="flow", storage=open_storage(workspace.study))
    study.set_user_attr(EARLY, {"reason": reason, "limit": 1})
    view = raypipe.open_search(workspace.folder)
    assert view.state == ("not running" if left else "finished")
    row = next(line for line in repr(view).splitlines() if line.startswith("flow "))
    assert row.split() == ["flow", "(ended", "early)", "2", "1", "0", "0", str(left), "-" if left else "retrained"]


def test_a_search_without_a_trial_has_all_columns_and_no_row(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(tiny(name="x"))))
    with hold(Workspace(tmp_path, "x")):
        view = raypipe.open_search(tmp_path)
        assert view.state == "running" and view.folder == folder
        assert view.trials.schema.names == list(COLUMNS) and view.trials.num_rows == 0
        assert "no trial has a score yet" in repr(view)
        assert "flow: 3 trials, retraining of the finalists" in repr(view)


def test_a_storage_root_means_its_latest_search_and_not_a_training(killed):
    for name, at in (("older", 10), ("trained", 30)):
        folder = killed.storage / name
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(tiny(name=name))))
        os.utime(folder / "config.yaml", (at, at))
    (killed.storage / "older" / "study.log").touch()
    os.utime(killed.folder / "config.yaml", (20, 20))
    assert raypipe.open_search(killed.storage).folder == killed.folder
    os.utime(killed.storage / "older" / "config.yaml", (40, 40))
    assert raypipe.open_search(killed.storage).folder == killed.storage / "older"


def test_nothing_is_written_to_the_search(killed):
    before = {path: path.stat().st_mtime_ns for path in killed.folder.rglob("*")}
    view = raypipe.open_search(killed.folder)
    for ask in (repr, type(view)._repr_html_, lambda view: view.report(), lambda view: view.predictor("flow-02")):
        ask(view)
    assert {path: path.stat().st_mtime_ns for path in killed.folder.rglob("*")} == before
    assert "search.lock" not in listing(killed.folder)


class _Cells(HTMLParser):
    """The texts of the cells of a page, and the tags that are open."""

    def __init__(self):
        super().__init__()
        self.cells, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td":
            self.cells.append(data)


def test_a_notebook_shows_tables_in_which_nothing_is_markup(killed):
    rows = records.read_rows(killed.trials)
    failed = {"status": "failed", "objective": None, "error": "<b>no</b> memory"}
    records.write_rows(killed.trials, [row | (failed if row["trial"] == "flow-01" else {}) for row in rows])
    page = raypipe.open_search(killed.folder)._repr_html_()
    parser = _Cells()
    parser.feed(page)
    assert not parser.open and "flow-02-s1" in parser.cells
    assert "failed: flow-01: &lt;b&gt;no&lt;/b&gt; memory" in page


ASK = """
import resource, sys
import raypipe
view = raypipe.open_search(sys.argv[1])
repr(view), view.best(3), view.curve("flow-00"), view.config("flow-00")
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, *({"torch", "ray", "matplotlib"} & sys.modules.keys()))
"""


def test_asking_needs_neither_torch_nor_ray_and_less_than_two_seconds(killed):
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(killed.folder)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, *modules = done.stdout.split()
    assert modules == [] and float(seconds) < 2
