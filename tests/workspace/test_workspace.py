"""The files of an experiment."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest

from raypipe import config
from raypipe.common.files import write_atomic
from raypipe.config import ConfigError
from raypipe.data.conversion.preprocessing import Preprocessing
from raypipe.data.shards import RemoteFolder, open_shards
from raypipe.workspace import manifest
from raypipe.workspace.claims import claim, hold, latest
from raypipe.workspace.dataset import check_dataset, prepare_dataset, splits_of
from raypipe.workspace.layout import Workspace, demo_key
from raypipe.workspace.manifest import begin, dataset_hashes, git_commit

SHARD = "shard_0001.hdf5"
EXPERIMENT = config.replace(
    config.Experiment(),
    **{
        "name": "e",
        "dataset.image_size": 16,
        "demo.train_clips": 2,
        "demo.val_clips": 1,
        "demo.test_clips": 1,
        "demo.clip_frames": 3,
        "search.flow.axes": {"train.noise_std": {"low": 0.02, "high": 0.3, "log": True}},
        "latents": {"mode": "off"},
    },
)


def begun(storage, name, at):
    """An experiment begun at a time (seconds)."""
    start(Workspace(storage, name))
    os.utime(storage / name / "config.yaml", (at, at))


def start(place):
    prepare_dataset(place, EXPERIMENT, lambda done, total: None)
    begin(place, EXPERIMENT)
    return place


def test_where_things_lie(tmp_path):
    place = Workspace(tmp_path, "e")
    expected = {
        place.autoencoder: "autoencoder",
        place.study: "study.log",
        place.trials: "trials.parquet",
        place.evaluation: "evaluation",
        place.best: "best",
        place.run("flow", "flow-01"): "flow/flow-01",
        place.latents("ab" * 32): "latents/abababababababab",
    }
    assert {path.relative_to(tmp_path / "e").as_posix() for path in expected} == set(expected.values())
    assert all(path == tmp_path / "e" / name for path, name in expected.items())


def test_the_built_in_dataset_is_known_by_its_settings(tmp_path):
    place = Workspace(tmp_path, "e")
    other = config.replace(EXPERIMENT, **{"demo.kick_probability": 0.5})
    larger = config.replace(EXPERIMENT, **{"dataset.image_size": 32})
    same = config.replace(EXPERIMENT, **{"train.steps": 3})
    assert len({demo_key(e) for e in (EXPERIMENT, other, larger)}) == 3
    assert place.dataset(same) == place.dataset(EXPERIMENT)
    assert place.dataset(EXPERIMENT).parent == tmp_path / "datasets"
    own = config.replace(EXPERIMENT, **{"dataset.root": str(tmp_path / "x" / ".." / "mine")})
    assert place.dataset(own) == tmp_path / "mine"


def test_begin_records_what_runs_and_does_so_once(tmp_path):
    place = start(Workspace(tmp_path, "e"))
    assert place.experiment() == EXPERIMENT
    manifest = json.loads((place.folder / "manifest.json").read_text())
    assert manifest["versions"]["torch"] == version("torch")
    assert manifest["seeds"] == {"train": 0, "search": 0, "evaluation": 0, "demo": 0}
    root = place.dataset(EXPERIMENT)
    hashes = {split: open_shards(root / split).content_hash() for split in ("train", "val", "test")}
    assert manifest["dataset"] == hashes and len(set(hashes.values())) == 3
    before = {path.name: path.read_bytes() for path in place.folder.iterdir()}
    assert set(before) == {"config.yaml", "manifest.json"}
    begin(place, config.replace(EXPERIMENT, **{"train.steps": 1, "train.random_seed": 5}))
    assert {path.name: path.read_bytes() for path in place.folder.iterdir()} == before


def test_the_config_of_no_experiment_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.*no experiment here"):
        Workspace(tmp_path, "nothing").experiment()


def test_a_fresh_name_is_claimed_by_one(tmp_path):
    assert claim(tmp_path, "e") == Workspace(tmp_path, "e")
    assert claim(tmp_path, "e").name == "e-2"  # though nothing has begun in the first yet
    begun(tmp_path, "e-3", 1)
    assert claim(tmp_path, "e").name == "e-4"
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: claim(tmp_path, "other").name, range(16)))
    assert sorted(names) == sorted(["other", *(f"other-{i}" for i in range(2, 17))])


HOLDER = """
import sys
from pathlib import Path
from raypipe.workspace.claims import hold
from raypipe.workspace.layout import Workspace
"""


def test_an_experiment_is_run_by_one_process_at_a_time(tmp_path):
    place = claim(tmp_path, "e")
    code = f"{HOLDER}with hold(Workspace(Path({str(tmp_path)!r}), 'e')): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as error, hold(place):
            pass
        message = str(error.value)
        assert f"process {holder.pid} on {socket.gethostname()} is running this search" in message
        assert str(place.folder) in message and "--name" in message and "\n" not in message
        assert place.folder.is_dir()
    finally:
        holder.kill()  # as hard as it gets: the lock goes with the process
        holder.communicate()
    with hold(place):
        begun(tmp_path, "e", 1)
    assert place.folder.is_dir()


def test_a_folder_in_which_nothing_began_does_not_stay(tmp_path):
    place = claim(tmp_path, "e")
    with pytest.raises(ConfigError), hold(place):
        raise ConfigError("bad input")
    assert list(tmp_path.iterdir()) == []


def test_latest_is_the_one_begun_last_that_has_it(tmp_path):
    assert latest(tmp_path, lambda w: True) is None
    for name, at in (("a", 30), ("a-2", 20), ("ab", 50), ("b", 40)):
        begun(tmp_path, name, at)

    def name(has, like=None):
        return latest(tmp_path, has, like).name

    assert name(lambda w: True) == "ab"
    assert name(lambda w: w.name != "ab") == "b"
    assert name(lambda w: True, like="a") == "a"
    (tmp_path / "a-2" / "trials.parquet").touch()
    assert name(lambda w: w.trials.exists()) == "a-2"
    assert latest(tmp_path, lambda w: True, like="zzz") is None


def test_write_atomic_replaces_whole_files(tmp_path):
    path = tmp_path / "new" / "file"
    write_atomic(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_atomic_onto_a_folder_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="folder"):
        write_atomic(tmp_path / "folder", "x")
    assert os.listdir(tmp_path) == ["folder"]


def test_the_built_in_dataset_is_made_once(tmp_path):
    place, calls = Workspace(tmp_path, "e"), []
    root = prepare_dataset(place, EXPERIMENT, lambda done, total: calls.append((done, total)))
    assert root == place.dataset(EXPERIMENT)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [len(open_shards(root / split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert open_shards(root / "train").clip(0).shape == (3, 16, 16, 3)
    prepare_dataset(place, EXPERIMENT, lambda done, total: calls.append((done, total)))
    assert len(calls) == 4


def test_a_dataset_that_is_not_there_is_named_with_the_remedy(tmp_path):
    made = prepare_dataset(Workspace(tmp_path, "e"), EXPERIMENT, lambda done, total: None)
    root = tmp_path / "own"
    own = config.replace(EXPERIMENT, **{"dataset.root": str(root), "dataset.name": "kth"})
    for lacking in ("train", "val"):
        with pytest.raises(ConfigError) as error:
            prepare_dataset(Workspace(tmp_path, "e"), own, lambda done, total: None)
        message = str(error.value)
        assert message.startswith("dataset.root: ") and "\n" not in message
        assert str(root / lacking) in message
        assert "python -m raypipe.convert_to_h5" in message and f"--out_dir {root}" in message
        root.mkdir(exist_ok=True)
        (root / lacking).symlink_to(made / lacking)
    assert prepare_dataset(Workspace(tmp_path, "e"), own, lambda done, total: None) == root
    assert splits_of(root) == ("train", "val")  # test is needed only in the end
    (root / "test").symlink_to(made / "test")
    assert splits_of(root) == ("train", "val", "test")
    assert splits_of(RemoteFolder((tmp_path / "none").as_uri())) == ("train", "val")
    named = config.replace(EXPERIMENT, **{"dataset.name": "kth"})  # no root: none is simulated for another name
    with pytest.raises(ConfigError, match="no shards"):
        prepare_dataset(Workspace(tmp_path, "e"), named, lambda done, total: None)


def test_the_check_before_anything_starts(tmp_path):
    place = Workspace(tmp_path, "e")
    check_dataset(place, EXPERIMENT)  # the built-in dataset is made when it is needed
    made = prepare_dataset(place, EXPERIMENT, lambda done, total: None)
    for root, message in (
        (str(tmp_path / "none"), "dataset.root: no shards in"),
        ((tmp_path / "none").as_uri(), f"dataset.root: {(tmp_path / 'none' / 'train').as_uri()}: no such file, folder"),
        ("abc://bucket/set", "dataset.root: abc://bucket/set/train: cannot be opened"),
    ):
        with pytest.raises(ConfigError) as error:
            check_dataset(place, config.replace(EXPERIMENT, **{"dataset.root": root}))
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    check_dataset(place, config.replace(EXPERIMENT, **{"dataset.root": str(made)}))


def test_a_dataset_under_a_uri_is_staged_and_is_the_same(tmp_path):
    place = Workspace(tmp_path, "e")
    made = prepare_dataset(place, EXPERIMENT, lambda done, total: None)
    settings = {"dataset.root": made.as_uri() + "/", "dataset.cache": str(tmp_path / "near"), "dataset.cache_gb": 0.001}
    far = config.replace(EXPERIMENT, **settings)
    check_dataset(place, far)
    root = prepare_dataset(place, far, lambda done, total: None)
    assert str(root) == made.as_uri()
    assert dataset_hashes(root) == dataset_hashes(made)
    assert (open_shards(root / "val").clip(0) == open_shards(made / "val").clip(0)).all()
    assert sorted(path.name[25:] for path in (tmp_path / "near").glob("*-*")) == [*["index.parquet"] * 3, SHARD]


def test_git_commit_is_the_checkouts(monkeypatch, tmp_path):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(manifest.__file__).parent, capture_output=True, text=True, check=False
    )
    found = git_commit()
    if head.returncode == 0:
        assert found is not None
        assert len(found.removesuffix("+")) >= 12
        assert head.stdout.startswith(found.removesuffix("+"))
    monkeypatch.setattr(manifest, "__file__", str(tmp_path / "manifest.py"))
    assert git_commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    clean = git_commit()
    assert clean == git(tmp_path, "rev-parse", "HEAD")[:12]
    (tmp_path / "file").write_text("2")
    assert git_commit() == f"{clean}+"
    git(tmp_path, "tag", "-a", "v1", "-m", "x")  # a tag is not a commit
    assert git_commit() == f"{clean}+"


def git(folder, *argv):
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(["git", *identity, *argv], cwd=folder, capture_output=True, text=True, check=True).stdout


def converted(tmp_path, **strides):
    """A dataset of shards that says how it was converted, with another stride for each split."""
    made = shutil.copytree(
        prepare_dataset(Workspace(tmp_path, "e"), EXPERIMENT, lambda done, total: None), tmp_path / "shards"
    )
    for split, stride in strides.items():
        record = {"preprocessing": asdict(Preprocessing(16, "pad", True, stride))}
        (made / split / "conversion.json").write_text(json.dumps(record))
    return config.replace(EXPERIMENT, **{"dataset.root": str(made), "dataset.name": "own"})


def test_the_conversion_of_a_dataset_is_part_of_the_record(tmp_path):
    own = converted(tmp_path, train=5, val=5, test=5)
    manifest.begin(Workspace(tmp_path, "own"), own)
    record = json.loads((tmp_path / "own" / "manifest.json").read_text())
    assert record["preprocessing"] == asdict(Preprocessing(16, "pad", True, 5))
    manifest.begin(Workspace(tmp_path, "demo"), EXPERIMENT)
    assert json.loads((tmp_path / "demo" / "manifest.json").read_text())["preprocessing"] is None


def test_a_stride_given_to_the_conversion_and_to_the_experiment_is_refused(tmp_path, caplog):
    own, place = converted(tmp_path, train=5, val=5, test=5), Workspace(tmp_path, "own")
    check_dataset(place, own)
    with pytest.raises(ConfigError) as error:
        check_dataset(place, config.replace(own, **{"dataset.frame_stride": 5}))
    assert str(error.value) == (
        "dataset.frame_stride: 5, but the shards were already converted with --frame-stride 5: 5 x 5 = every 25th "
        "frame of the videos; for every 5th frame set --dataset.frame_stride 1; for every 25th frame convert with "
        "--frame-stride 25 and set --dataset.frame_stride 1"
    )
    with caplog.at_level("INFO"):
        check_dataset(place, config.replace(own, **{"dataset.frame_stride": 2}))
    assert "every 10th frame of the videos" in caplog.text


def test_splits_that_were_converted_in_different_ways_are_refused(tmp_path):
    own = converted(tmp_path, train=5, val=5, test=1)
    with pytest.raises(
        ConfigError, match=r"train was converted to padded .* every 5th frame, but test to .*every frame"
    ):
        check_dataset(Workspace(tmp_path, "own"), own)
