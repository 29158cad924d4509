"""Training one component: run names, refusals, and what Ray Train must not change about the result."""

import itertools
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.cloudpickle
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from ray.util.metrics import Gauge

from raypipe import checkpoint, config, train
from raypipe.config import ConfigError
from raypipe.data.shards import ShardWriter
from raypipe.data.splits import SPLITS
from raypipe.distributed.connection import start_ray
from raypipe.distributed.jobs import ComponentJob
from raypipe.distributed.trainer import train_jobs
from raypipe.distributed.training_job import Settings
from raypipe.training.early_stopping import Validated, validated
from raypipe.training.loop import DivergedError
from raypipe.training.monitor import read_metrics
from raypipe.workspace.layout import Workspace
from raypipe.workspace.run_names import RunName, parse_run_name, run_name
from tests import mlflowtools, raytools
from tests.raytools import TINY, difference, flags, outcome, same_weights, started, tiny, wait_for

pytestmark = pytest.mark.cluster

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find the tests
STEPS = TINY["train.steps"]
LONG = {"train.steps": 600, "train.checkpoint_every": 100, "train.validate_every": 0}
"""Long enough to be interrupted."""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("f-01-nll", RunName("flow", 0.1, "nll")),
        ("f-01-null", RunName("flow", 0.1, "nll")),
        ("f-003-mse", RunName("flow", 0.03, "mse")),
        ("f-0-mse", RunName("flow", 0.0, "mse")),
        ("f-1-nll", RunName("flow", 1.0, "nll")),
        ("d-01", RunName("denoiser", 0.1, None)),
        ("d-01-null", RunName("denoiser", 0.1, None)),
        ("g-01-regression", RunName("diffusion", 0.1, "regression")),
        ("g-025-nll", RunName("diffusion", 0.25, "nll")),
    ],
)
def test_a_run_name_says_component_noise_and_loss(name, expected):
    assert parse_run_name(name) == expected


@pytest.mark.parametrize(
    "name", ["q-77-what", "f-01", "f-01-what", "g-01-mse", "d-01-mse", "f-nll", "f-x-nll", "", "f"]
)
def test_other_run_names_are_refused_with_the_forms_there_are(name):
    with pytest.raises(ConfigError, match=r"--run-name: must be f-<noise>-nll\|mse.*such as f-01-nll"):
        parse_run_name(name)


@given(
    st.sampled_from([(c, loss) for c, losses in config.LOSSES.items() for loss in losses or (None,)]),
    st.integers(0, 1000).map(lambda n: n / 1000) | st.integers(1, 9).map(float),
)
def test_run_names_round_trip(kind, noise):
    component, loss = kind
    assert parse_run_name(run_name(component, noise, loss)) == RunName(component, noise, loss)


def test_a_config_file_may_be_named_after_its_run():
    of = train._component_of
    assert of("configs/demo_f-01-nll.yaml", None, explicit=False) == RunName("flow", 0.1, "nll")
    assert of("configs/kth_d-003.yaml", None, explicit=False) == RunName("denoiser", 0.03, None)
    assert of("configs/demo.yaml", None, explicit=False) is None
    assert of("configs/demo_f-01-nll.yaml", "g-01-nll", explicit=False) == RunName("diffusion", 0.1, "nll")
    assert of("configs/demo_f-01-nll.yaml", None, explicit=True) is None


# ---- one Ray for all below: two nodes of one CPU each, as a cluster has them


@pytest.fixture(scope="module")
def cluster():
    before = dict(os.environ)
    os.environ |= {"RAY_AUTH_MODE": "disabled", "WANDB_MODE": "offline"}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = nodes.address
        start_ray()
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A storage root; its autoencoder is not trained, which no test here minds."""
    root = tmp_path_factory.mktemp("train") / "storage"
    raytools.save_autoencoder(root.parent / "autoencoder")
    return root


@pytest.fixture(scope="module")
def values(storage):
    """The experiment that all train."""
    return TINY | {"autoencoder.path": str(storage.parent / "autoencoder")}


@pytest.fixture(scope="module")
def workspace(cluster, storage, values):
    """Prepared: dataset, autoencoder and latents."""
    experiment = tiny(**values, name="reference")
    workspace = Workspace(storage, experiment.name)
    train.prepare(experiment, workspace)
    return workspace


def make_jobs(workspace, values, suffix, count=3):
    """Flows of one configuration, each from a seed of its own."""
    return [
        ComponentJob(tiny(**values, **{"train.random_seed": seed}), workspace, f"{suffix}-{seed}")
        for seed in range(count)
    ]


def settings(workspace, name, **more):
    return Settings(workspace.ray / "train", name, **{"show_progress": False, "keep_checkpoints": True, **more})


@pytest.fixture(scope="module")
def speeds():
    """What the gauge of the steps per second was set to while the reference was trained, with its tags."""
    return []


@pytest.fixture(scope="module")
def reference(workspace, values, speeds):
    """Three jobs, one after the other, on one worker that nobody disturbs."""
    jobs = make_jobs(workspace, values, "reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Gauge, "set", lambda gauge, value, tags=None: speeds.append((gauge.info, value)))
        train_jobs([*jobs, long_job(workspace, values)], settings(workspace, "reference", show_progress=True))
    return jobs


def long_job(workspace, values):
    return ComponentJob(tiny(**values | LONG), workspace, "long")


@pytest.fixture(scope="module")
def long_reference(workspace, values, reference):
    """A longer one, undisturbed too."""
    return long_job(workspace, values)


@pytest.mark.slow
def test_jobs_are_trained_to_their_end_and_finished_ones_are_skipped(workspace, reference):
    for job in reference:
        rows = read_metrics(job.folder)
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
        assert rows[-1]["loss"] < rows[0]["loss"]
        meta = checkpoint.read_meta(job.folder)
        assert (meta.step, meta.component, meta.seed) == (STEPS, "flow", job.experiment.train.random_seed)
        assert meta.autoencoder_hash == checkpoint.autoencoder_hash(workspace.autoencoder)
    assert difference(reference[0].folder, reference[1].folder) > 0.1  # seeds matter

    written = [(job.folder / "model.safetensors").stat().st_mtime_ns for job in reference]
    began = time.monotonic()
    train_jobs(reference, settings(workspace, "reference"))
    assert time.monotonic() - began < 3  # no workers were started
    assert [(job.folder / "model.safetensors").stat().st_mtime_ns for job in reference] == written


@pytest.mark.slow
def test_a_training_tells_its_speed_to_ray_metrics_until_it_ends(workspace, values, reference, speeds):
    mine = [value for info, value in speeds if info["name"] == "raypipe_steps_per_second"]
    assert all(info["default_tags"] == {"experiment": "reference", "stage": "flow"} for info, _ in speeds)
    rows = itertools.pairwise(read_metrics(long_job(workspace, values).folder))
    seen = {(after["step"] - before["step"]) / after["seconds"] for before, after in rows}
    assert any(value in seen for value in mine) and mine[-1] == 0.0


@pytest.mark.slow
def test_two_workers_on_two_nodes_train_the_flow_that_one_worker_trains(cluster, workspace, values, reference):
    assert len([node for node in ray.nodes() if node["Alive"]]) == 2
    (job,) = make_jobs(workspace, values, "two", 1)
    train_jobs([job], settings(workspace, "two", num_workers=2))
    assert difference(job.folder, reference[0].folder) < 1e-4
    assert not same_weights(job.folder, reference[0].folder)  # it was another computation
    ours, theirs = read_metrics(job.folder), read_metrics(reference[0].folder)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]


@dataclass(frozen=True)
class DyingJob:
    """A job whose worker dies at a step, as from a lack of memory; `mark` tells that it has."""

    job: ComponentJob
    at: int
    mark: Path

    folder = property(lambda self: self.job.folder)
    steps = property(lambda self: self.job.steps)
    checkpoint_every = property(lambda self: self.job.checkpoint_every)

    def build(self, *args: Any) -> "DyingTrainee":
        return DyingTrainee(self.job.build(*args), self)


class DyingTrainee:
    def __init__(self, trainee, job):
        self.trainee, self.job = trainee, job

    step = property(lambda self: self.trainee.step)

    def advance(self, stop, report, every):
        def note(progress):
            if progress.step == self.job.at and not self.job.mark.exists():
                time.sleep(1)  # a checkpoint counts once Ray has looked at it
                self.job.mark.write_text("died")
                os._exit(1)
            report(progress)

        self.trainee.advance(stop, note, every)

    def save(self, folder):
        self.trainee.save(folder)

    def restore(self, folder):
        self.trainee.restore(folder)
        with self.job.mark.open("a") as file:
            file.write(f" and went on from {self.trainee.step}")


@pytest.mark.slow
@pytest.mark.long
def test_jobs_side_by_side_come_out_as_one_after_the_other_even_if_a_worker_dies(
    workspace, values, reference, tmp_path
):
    jobs = make_jobs(workspace, values, "beside")
    mark, at = tmp_path / "mark", 2 * jobs[0].checkpoint_every
    dying = [DyingJob(jobs[0], at + 1, mark), *jobs[1:]]
    train_jobs(dying, settings(workspace, "beside", num_workers=2, side_by_side=True, max_failures=1))
    assert mark.read_text() == f"died and went on from {at}"
    for ours, theirs in zip(jobs, reference, strict=True):
        assert same_weights(ours.folder, theirs.folder)
        assert checkpoint.read_meta(ours.folder) == checkpoint.read_meta(theirs.folder)
        assert [row["step"] for row in read_metrics(ours.folder)] == list(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_diverging_job_is_told_at_once_and_not_tried_again(workspace, values, tmp_path, side_by_side):
    """Its finished neighbour is kept; a rank that gave up does not keep the others waiting."""
    good, bad = make_jobs(workspace, values, f"diverging-{side_by_side}", 2)
    counted = [CountedJob(good, tmp_path / "good"), CountedJob(bad, tmp_path / "bad", wild=True)]
    with pytest.raises(DivergedError, match=rf"^{bad.folder.name}: the loss is .* by step 1; a lower learning rate"):
        train_jobs(counted, settings(workspace, f"wild-{side_by_side}", num_workers=2, side_by_side=side_by_side))
    ranks = 1 if side_by_side else 2
    assert (tmp_path / "bad").read_text() == "." * ranks  # begun once
    assert checkpoint.read_meta(good.folder).step == STEPS
    assert not bad.folder.exists()


@dataclass(frozen=True)
class CountedJob:
    """A job that leaves a mark whenever it begins; a wild one starts from weights beyond all bounds."""

    job: ComponentJob
    mark: Path
    wild: bool = False

    folder = property(lambda self: self.job.folder)
    steps = property(lambda self: self.job.steps)
    checkpoint_every = property(lambda self: self.job.checkpoint_every)

    def build(self, *args: Any) -> Any:
        with self.mark.open("a") as file:
            file.write(".")
        trainee = self.job.build(*args)
        if self.wild:
            for parameter in trainee.module.parameters():
                parameter.data.fill_(1e30)
        return trainee


@dataclass(frozen=True)
class FlatJob:
    """A job whose score on validation never improves."""

    job: ComponentJob

    folder = property(lambda self: self.job.folder)
    steps = property(lambda self: self.job.steps)
    checkpoint_every = property(lambda self: self.job.checkpoint_every)

    def build(self, *args: Any) -> Any:
        trainee = self.job.build(*args)
        if args[0] == 0:
            trainee.early_stopping._score = lambda module: 0.5
        return trainee


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [False, True])
def test_all_ranks_end_when_the_score_no_longer_improves(workspace, values, side_by_side):
    """Whether they train the job together, or one of them trains another job, to its end."""
    checked = {"train.validate_every": 5, "train.patience": 2}
    flat, other = make_jobs(workspace, values | checked, f"flat-{side_by_side}", 2)
    jobs = [FlatJob(flat), *([other] if side_by_side else [])]
    train_jobs(jobs, settings(workspace, f"flat-{side_by_side}", num_workers=2, side_by_side=side_by_side))
    assert checkpoint.read_meta(flat.folder).step == 15
    scores = {row["step"]: row["validation"] for row in read_metrics(flat.folder) if "validation" in row}
    assert scores == {5: 0.5, 10: 0.5, 15: 0.5}
    assert validated(checkpoint.read_meta(flat.folder)) == Validated(0.5, 5, 2, True)
    train_jobs(jobs, settings(workspace, f"flat-{side_by_side}-again", num_workers=2, side_by_side=side_by_side))
    assert checkpoint.read_meta(flat.folder).step == 15
    if side_by_side:
        assert checkpoint.read_meta(other.folder).step in (15, 20, STEPS)
        assert validated(checkpoint.read_meta(other.folder)).score != 0.5


@pytest.mark.slow
def test_resume_step_goes_on_from_that_checkpoint(long_reference, storage, values, tmp_path):
    """In place of what the run became, and to the same end, since every draw is tied to its step."""
    folder = long_reference.folder
    shutil.copytree(folder, tmp_path / "before")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    argv = ["--storage", storage, "--name", "reference", "--component", "flow", "--run-name", "long"]
    assert outcome(train.main, train.PROG, [*argv, *flags(values | LONG), "--resume-step", "300"]) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns > written
    assert same_weights(folder, tmp_path / "before")
    assert [row["step"] for row in read_metrics(folder)] == list(range(20, 601, 20))
    assert len(list(folder.with_name("long.log").glob("events.out.tfevents.*"))) == 2


# ---- refusals


def refusal(capfd, argv) -> str:
    """The one line that a bad command leaves, its exit code checked."""
    capfd.readouterr()
    assert outcome(train.main, train.PROG, argv) == 2
    out, err = capfd.readouterr()
    assert out == ""
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("raypipe.train: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--config", "missing.yaml"], r"missing\.yaml: no such config file"),
        (
            ["--train.learning_rat", "1"],
            r"unknown argument '--train.learning_rat'; did you mean '--train.learning_rate'",
        ),
        (
            ["--config", "misspelt.yaml"],
            r"misspelt\.yaml: unknown key 'train.learning_rat'.*did you mean 'learning_rate'",
        ),
        (["--run-name", "q-77-what"], r"--run-name: must be .*not 'q-77-what'"),
        (
            ["--dataset.root", "nowhere"],
            r"dataset\.root: no shards in '.*nowhere/train'; make them with python -m raypipe",
        ),
        (["--num-workers", "0"], r"--num-workers: must be a positive integer, not 0"),
        (
            ["--run-name", "f-01-nll", "--resume"],
            r"--resume: no run 'f-01-nll' in .*no experiments\); omit --resume to start it",
        ),
        (
            ["--run-name", "f-01-nll", "--resume-step", "12"],
            r"--resume-step: no checkpoint of 'flow-f-01-nll' at step 12",
        ),
        (["--loss", "regression"], r"train\.loss: must be nll or mse for a flow, not 'regression'"),
        (["--num-workers", "3"], r"train\.batch_size: must be a multiple of train.num_workers \(3\), not 16"),
        (
            ["--num-workers", "16"],
            r"train\.num_workers: 16 workers need 16 CPUs, but the cluster has 2 CPUs, .* use fewer",
        ),
        (
            ["--num-gpus", "2"],
            r"--num-gpus: a training worker needs 1 GPU, but no node has more than 0 GPUs; .*omit it",
        ),
        (
            ["--dataset.root", "short"],
            r"a window of 5 frames at stride 1 spans 5 frames, but the longest clip of train has 4",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_bad_input_is_one_line_and_nothing_is_written(cluster, tmp_path, monkeypatch, capfd, argv, says):
    monkeypatch.chdir(tmp_path)
    Path("misspelt.yaml").write_text("train: {learning_rat: 1}")
    for split in SPLITS:
        with ShardWriter(Path("short") / split) as writer:
            writer.add("clip", np.zeros((4, 32, 32, 3), np.uint8))
    before = raytools.listing(tmp_path)
    line = refusal(capfd, [*argv, *flags(TINY), "--storage", tmp_path / "storage"])
    assert re.search(says, line), line
    assert raytools.listing(tmp_path) == before


@pytest.mark.slow
def test_a_run_that_exists_is_not_run_over(reference, storage, values, capfd):
    folder = reference[1].folder
    before = raytools.listing(storage)
    argv = ["--storage", storage, "--name", "reference", "--run-name", "f-01-mse", *flags(values)]
    copied = folder.with_name("f-01-mse")
    copied.symlink_to(folder)
    try:
        assert "'f-01-mse' is trained already" in refusal(capfd, argv)
    finally:
        copied.unlink()
    assert raytools.listing(storage) == before


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--run-name", "q-77-what"], "--run-name: must be f-<noise>-nll|mse, d-<noise>"),
        (["--dataset.root", "nowhere"], "dataset.root: no shards in "),
    ],
)
def test_bad_input_at_the_shell(tmp_path, argv, says):
    done = subprocess.run(
        [sys.executable, "-m", "raypipe.train", *argv, "--storage", tmp_path / "storage"],
        cwd=tmp_path,
        env=os.environ | {"RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"raypipe.train: error: {says}") and done.stderr.count("\n") == 1, done.stderr
    assert raytools.listing(tmp_path) == []


# ---- Ctrl-C


@pytest.mark.slow
@pytest.mark.long
def test_ctrl_c_leaves_a_run_that_resume_takes_to_the_same_end(
    cluster, storage, values, long_reference, tmp_path, capfd
):
    folder = Workspace(storage, "interrupted").run("flow", "f-01-nll")
    argv = ["-m", "raypipe.train", "--name", "interrupted", "--run-name", "f-01-nll", *flags(values | LONG)]
    argv += ["--wandb", "--mlflow"]
    there = {"RAY_ADDRESS": cluster.address}
    with started(tmp_path / "first", argv, storage, **there) as process:
        wait_for(lambda: process.popen.poll() is not None or len(read_metrics(folder)) >= 8, 240)
        process.interrupt()
        assert process.finish(120) == 130, process.err
        assert (
            "raypipe.train: interrupted; run the same command with --resume to continue" in process.err.splitlines()[-1]
        )
        assert "Traceback" not in process.err
        process.gone()
    assert not (folder / "config.json").exists()
    assert 0 < len(read_metrics(folder)) < LONG["train.steps"] / 20
    raytools.check_files(storage / "interrupted")

    assert outcome(train.main, train.PROG, [*argv[2:], "--resume", "--storage", storage]) == 0
    assert "trained flow f-01-nll: 600 steps, s = 0.1, loss nll" in capfd.readouterr().out
    assert same_weights(folder, long_reference.folder)
    assert [row["step"] for row in read_metrics(folder)] == list(range(20, 601, 20))
    log = folder.with_name("f-01-nll.log")
    assert list(log.glob("events.out.tfevents.*"))
    assert len(list(log.glob("wandb/offline-run-*/run-*.wandb"))) == 2  # one of each process
    (run,) = mlflowtools.read_runs(f"sqlite:///{storage / 'interrupted' / 'mlruns' / 'mlflow.db'}").values()
    assert (run.name, run.status) == ("interrupted/f-01-nll", "FINISHED")
    assert run.metrics["loss"] == [(row["step"], row["loss"]) for row in read_metrics(folder)]
    raytools.check_files(storage / "interrupted")
