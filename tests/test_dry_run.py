"""`--dry-run` of every verb: it prints a plan, leaves nothing behind, and fails as the command itself would."""

import runpy
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from raypipe import convert_to_h5, evaluate, generate, train, tune
from raypipe.data.shards import open_shards
from raypipe.distributed.measuring import Measured, Steps
from raypipe.distributed.rehearsal import Rehearsed
from raypipe.search import dry_run
from tests.raytools import ROOT, TINY, complete, flags, listing, outcome
from tests.recordedtools import unpack
from tests.test_generate import save_model
from tests.videotools import noise, save_video

pipeline = runpy.run_path(str(ROOT / "experiments" / "pipeline.py"), run_name="pipeline")["main"]
SEARCHES = {
    "pipeline.py": pipeline,
    **{f"tune_{name}.py": partial(tune.search, name) for name in ("flow", "denoiser", "diffusion", "joint")},
}
JOINT = {"search.joint.trials": 1, "search.joint.steps": 12, "search.joint.refit_steps": 12}
MEASURED = Measured(Steps(0.1, 0.2), Steps(0.1, 0.2), memory=2**28, process=2**29, score=1.0, encode=0.001, start=2.0)


@pytest.fixture
def known_pace(monkeypatch):
    """Nothing is measured: the pace and the memory of all trainings are `MEASURED`."""
    monkeypatch.setattr(dry_run, "rehearse", lambda wanted: dict.fromkeys(wanted, Rehearsed((MEASURED,))))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files of this process."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def printed(capfd, main, prog, *argv):
    capfd.readouterr()
    code = outcome(main, prog, [*argv, "--dry-run"])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out


def refusal(capfd, main, prog, *argv):
    capfd.readouterr()
    assert outcome(main, prog, [*argv, "--dry-run"]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"{prog}: error: "), err
    return err


@pytest.mark.slow
@pytest.mark.cluster
def test_a_ray_of_its_own_ends_with_it(tmp_path):
    """Its folder is in that for temporary files, whose path must be short, as those of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="dry-") as place:
        argv = ["-m", "raypipe.train", "--run-name", "f-01-nll", "--dry-run", *flags(TINY)]
        process = complete(tmp_path / "log", argv, tmp_path / "storage", TMPDIR=place)
        process.gone()
        assert "would be trained in" in process.out and "not measured" not in process.out
        rows = {line.split()[0]: line for line in process.out.splitlines() if line[:1].isalpha()}
        assert "MiB" in rows["autoencoder"] and "MiB" in rows["f-01-nll"] and "does" not in rows
        assert listing(Path(place)) == []
    assert not (tmp_path / "storage").exists()


@pytest.mark.cluster
@pytest.mark.parametrize("prog", SEARCHES)
def test_searches(two_cpus, known_pace, tmp_path, temporary, capfd, prog):
    storage = tmp_path / "storage"
    out = printed(capfd, SEARCHES[prog], prog, "--storage", storage, *flags(TINY | JOINT))
    assert not storage.exists() and listing(temporary) == []
    rows = {line.split()[0]: line for line in out.splitlines() if line[:1].isalpha()}
    assert {"autoencoder", "flow", "time", "disk"} <= rows.keys() and "256 MiB" in rows["flow"]
    stage = prog.removeprefix("tune_").removesuffix(".py")
    assert ("joint" in out) == (stage in ("joint", "pipeline"))
    assert ("evaluation" in out) == (stage == "pipeline")


@pytest.mark.cluster
def test_a_diffusion_needs_a_flow_first(two_cpus, known_pace, tmp_path, capfd):
    storage = tmp_path / "storage"
    out = printed(capfd, train.main, train.PROG, "--run-name", "g-01-nll", "--storage", storage, *flags(TINY))
    names = [line.split()[0] for line in out.splitlines() if line.startswith(("f-", "g-"))]
    assert names == ["f-01-nll", "g-01-nll"] and not storage.exists()


@pytest.mark.cluster
def test_resume_says_what_is_left(two_cpus, known_pace, tmp_path, capfd):
    workspace = unpack(tmp_path / "storage")
    (workspace.folder / "latents").mkdir(exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    argv = ["--storage", tmp_path / "storage", "--resume", "--trials", 5]
    out = printed(capfd, SEARCHES["tune_flow.py"], "tune_flow.py", *argv)
    [row] = [line.split() for line in out.splitlines() if line.startswith(("flow", "denoiser", "diffusion", "autoenc"))]
    assert row[:3] == ["flow", "2", "18"]  # three of five trials have ended
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    line = refusal(capfd, SEARCHES["tune_flow.py"], "tune_flow.py", *argv[:3])
    assert "is finished; to extend it" in line


@pytest.mark.cluster
def test_an_evaluation(two_cpus, known_pace, tmp_path, capfd):
    workspace = unpack(tmp_path / "storage")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    argv = ["--storage", tmp_path / "storage", "--name", workspace.name]
    again = printed(capfd, evaluate.main, evaluate.PROG, *argv, "--again")
    assert "combinations on 6 validation windows" in again and "evaluation" in again
    with_rival = printed(capfd, evaluate.main, evaluate.PROG, *argv, "--rivals", "[flow_matching]")
    assert "rivals   flow_matching" in with_rival and "scored already" not in with_rival
    assert "scored already" in printed(capfd, evaluate.main, evaluate.PROG, *argv)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model.dpeth": 2}, "unknown argument '--model.dpeth'; did you mean '--model.depth'?"),
        ({"train.loss": "nill"}, "train.loss: input should be"),
        ({"dataset.root": "/nowhere", "dataset.name": "mine"}, "dataset.root: "),
        ({"demo.clip_frames": 6}, "evaluation.horizon: a window of 7 frames at stride 1 spans 7 frames, but"),
        ({"search.cpus_per_trial": 3}, "search.cpus_per_trial: a trial needs 3 CPUs, but no node has more than 2"),
    ],
)
def test_what_is_wrong_is_the_line_of_the_command(two_cpus, tmp_path, capfd, values, says):
    storage = tmp_path / "storage"
    line = refusal(capfd, pipeline, "pipeline.py", "--storage", storage, *flags(TINY | values))
    assert says in line and not storage.exists()


@pytest.mark.cluster
def test_what_does_not_fit_is_said(two_cpus, tmp_path, monkeypatch, capfd):
    """A network of tera-weights is not even built."""
    real, known = dry_run.rehearse, Rehearsed((MEASURED,))
    monkeypatch.setattr(dry_run, "rehearse", lambda wanted: {"autoencoder": known, **real({"flow": wanted["flow"]})})
    too_large = {"model.inner_dim": 2**17, "search.minutes": 0.01, "autoencoder.path": None}
    out = printed(
        capfd, SEARCHES["tune_flow.py"], "tune_flow.py", "--storage", tmp_path / "storage", *flags(TINY | too_large)
    )
    assert "does not fit: memory: flow: weights, gradients and optimizer alone need" in out
    assert "does not fit: disk: " in out and "time     unknown" in out


@pytest.mark.cluster
def test_what_does_not_fit_together_is_said(two_cpus, tmp_path, monkeypatch, capfd):
    huge = Rehearsed((replace(MEASURED, process=2**45),))
    monkeypatch.setattr(dry_run, "rehearse", lambda wanted: dict.fromkeys(wanted, huge))
    argv = ["--storage", tmp_path / "storage", *flags(TINY | {"search.minutes": 0.1})]
    out = printed(capfd, pipeline, "pipeline.py", *argv)
    assert "does not fit: memory: flow: 2 trials at a time on a node need 6.55e+04 GiB, but it has" in out
    assert "does not fit: search.minutes: 0.1, but all of it takes about" in out


def test_generate(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model = save_model(tmp_path / "model")
    save_video(tmp_path / "clip.mkv", noise(0, frames=12))
    before = listing(tmp_path)
    argv = ["--model", model, "--input", tmp_path / "clip.mkv", "--frames", 5]
    out = printed(capfd, generate.main, generate.PROG, *argv)
    assert "would predict 5 frames from 2 given frames" in out and "clip-prediction.gif" in out
    assert listing(tmp_path) == before
    assert "no such folder" in refusal(capfd, generate.main, generate.PROG, "--model", tmp_path / "none")


def test_convert_counts_clips_and_bytes(tmp_path, temporary, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for split, count in (("train", 6), ("val", 2)):
        for i in range(count):
            save_video(tmp_path / "videos" / split / f"{i}.mkv", noise(i, frames=9))
    argv = ["--data_dir", str(tmp_path / "videos"), "--out_dir", str(tmp_path / "out"), "--image_size", "16"]
    assert convert_to_h5.main([*argv, "--dry-run"]) == 0
    rows = {line.split()[0]: line.split() for line in capfd.readouterr().out.splitlines()}
    assert not (tmp_path / "out").exists() and listing(temporary) == []
    assert convert_to_h5.main([*argv, "--num-workers", "1"]) == 0
    for split in ("train", "val"):
        made = open_shards(tmp_path / "out" / split)
        assert rows[split][1] == rows[split][3] == str(len(made))
        assert int(rows[split][4]) == int(np.sum(made.lengths))
    shutil.rmtree(tmp_path / "videos")
    assert convert_to_h5.main([*argv, "--dry-run"]) == 2
    assert capfd.readouterr().err.count("error:") == 1
