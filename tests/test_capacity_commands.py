"""Every command refuses what cannot run on the cluster at once: one line, exit code 2, nothing written."""

import runpy
import tarfile
from functools import partial

import numpy as np
import pytest

from raypipe import cli, evaluate, train, tune
from raypipe.data.shards import ShardWriter
from raypipe.data.splits import SPLITS
from raypipe.distributed.capacity import check_evaluation, check_search
from tests.raytools import ROOT, listing, tiny

pytestmark = pytest.mark.cluster

pipeline = runpy.run_path(str(ROOT / "experiments" / "pipeline.py"), run_name="pipeline")["main"]
SEARCHES = {
    "pipeline.py": pipeline,
    **{f"tune_{name}.py": partial(tune.search, name) for name in ("flow", "denoiser", "diffusion")},
}
NO_GPU = "search.gpus_per_trial: a trial needs 1 GPU, but no node has more than 0 GPUs; to use CPUs alone, set"


@pytest.fixture
def shards(tmp_path):
    for split in SPLITS:
        with ShardWriter(tmp_path / "shards" / split) as writer:
            writer.add("clip", np.zeros((45, 64, 64, 3), np.uint8))
    return tmp_path / "shards"


def refusal(capfd, main, prog, *argv):
    capfd.readouterr()
    assert cli.run(main, prog, [str(arg) for arg in argv]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"{prog}: error: "), err
    return err


@pytest.mark.parametrize("prog", SEARCHES)
def test_a_search_with_gpus_on_a_cluster_without(two_cpus, shards, tmp_path, capfd, prog):
    storage = tmp_path / "storage"
    argv = ["--config", ROOT / "experiments/configs/kth.yaml", "--dataset.root", shards, "--storage", storage]
    line = refusal(capfd, SEARCHES[prog], prog, *argv)
    assert NO_GPU in line
    assert "search.cpus_per_trial: a trial needs 4 CPUs, but no node has more than 2 CPUs; lower" in line
    assert not storage.exists()
    named = refusal(capfd, SEARCHES[prog], prog, *argv, "--name", "mine", "--search.gpus_per_trial", 0)
    assert "GPU" not in named and "4 CPUs" in named
    assert not storage.exists()


def test_a_training(two_cpus, shards, tmp_path, capfd):
    argv = ["--config", ROOT / "experiments/configs/kth.yaml", "--dataset.root", shards, "--storage", tmp_path / "s"]
    for extra, says in (
        (["--num-gpus", 1], "--num-gpus: a training worker needs 1 GPU, but no node has more than 0 GPUs"),
        (["--train.cpus_per_worker", 3], "train.cpus_per_worker: a training worker needs 3 CPUs, but no node has more"),
        (["--num-workers", 4], "train.num_workers: 4 workers need 4 CPUs, but the cluster has 2 CPUs, room for 2"),
    ):
        assert says in refusal(capfd, train.main, train.PROG, *argv, *extra)
        assert not (tmp_path / "s").exists()


def test_an_evaluation_keeps_the_scores_that_it_was_to_replace(two_cpus, tmp_path, capfd):
    with tarfile.open(ROOT / "tests" / "recorded" / "search.tar.gz") as archive:
        archive.extractall(tmp_path / "storage", filter="data")
    (tmp_path / "storage" / "demo" / "evaluation" / "scored.txt").touch()
    before = listing(tmp_path)
    argv = ["--storage", tmp_path / "storage", "--again", "--search.gpus_per_trial", 1]
    assert "the scoring of a combination needs 1 GPU" in refusal(capfd, evaluate.main, evaluate.PROG, *argv)
    assert listing(tmp_path) == before


def test_the_tiny_experiment_fits(two_cpus):
    check_search(tiny())
    check_evaluation(tiny())
