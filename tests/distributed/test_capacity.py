"""What cannot run is refused with both numbers and the flag to change: each worker must fit on one node."""

import re
from pathlib import Path

import pytest
import yaml

from raypipe import config
from raypipe.common.errors import UserError
from raypipe.distributed import capacity
from raypipe.distributed.capacity import Cluster, check_evaluation, check_search, check_training
from raypipe.distributed.training_job import Settings

KTH = {"search.cpus_per_trial": 4, "search.gpus_per_trial": 1.0}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def nodes(monkeypatch):
    """Set the nodes of the cluster."""

    def set_nodes(*resources):
        monkeypatch.setattr(capacity, "alive", lambda: Cluster(list(resources), []))
        monkeypatch.setattr(capacity, "scales_up", lambda: False)

    return set_nodes


def experiment(**values):
    return config.replace(config.Experiment(), **{name.replace("__", "."): value for name, value in values.items()})


def refusal(call, *args):
    with pytest.raises(UserError) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_trial_that_fits_on_no_node(nodes):
    nodes({"CPU": 2.0}, {"CPU": 3.0})
    asked = config.replace(config.Experiment(), **KTH)
    assert refusal(check_search, asked) == (
        "search.gpus_per_trial: a trial needs 1 GPU, but no node has more than 0 GPUs; to use CPUs alone, set "
        "--search.gpus_per_trial 0; search.cpus_per_trial: a trial needs 4 CPUs, but no node has more than 3 CPUs; "
        "lower --search.cpus_per_trial"
    )
    assert "search.gpus_per_trial: the scoring of a combination needs 1 GPU" in refusal(check_evaluation, asked)
    nodes({"CPU": 2.0}, GPU_NODE)
    check_search(asked)
    check_evaluation(asked)


def test_the_cpus_and_the_gpu_must_be_on_the_same_node(nodes):
    nodes({"CPU": 2.0, "GPU": 1.0}, {"CPU": 16.0})
    line = refusal(check_search, config.replace(config.Experiment(), **KTH))
    assert line.startswith(
        "search.cpus_per_trial: a trial needs 1 GPU and 4 CPUs on one node, but the nodes have 0 GPUs and 16 CPUs or 1 "
        "GPU and 2 CPUs; lower"
    )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_workers": 2, "cpus_per_worker": 2}, None),
        ({"num_workers": 3, "cpus_per_worker": 2}, "train.num_workers: 3 workers need 6 CPUs.*has 6 CPUs, room for 2"),
        (
            {"num_workers": 9},
            "train.num_workers: 9 workers need 9 CPUs, but the cluster has 6 CPUs, room for 6",
        ),
        ({"cpus_per_worker": 4}, "train.cpus_per_worker: a training worker needs 4 CPUs, but no node has more than 3"),
        ({"use_gpu": True}, "--num-gpus: a training worker needs 1 GPU, but no node has more than 0 GPUs; .*omit it"),
    ],
)
def test_a_training(nodes, settings, says):
    nodes({"CPU": 3.0}, {"CPU": 3.0})
    asked = Settings(Path("/storage"), "run", **settings)
    if says is None:
        check_training(asked)
    else:
        assert re.search(says, refusal(check_training, asked))


def test_the_workers_of_a_trial_together(nodes):
    nodes(GPU_NODE)
    asked = {"search.workers_per_trial": 2, "search.scheduler": "none"}
    check_search(config.replace(config.Experiment(), **asked))
    line = refusal(check_search, config.replace(config.Experiment(), **asked, **KTH))
    assert line.startswith(
        "search.workers_per_trial: 2 workers need 2 GPUs and 8 CPUs, but the cluster has 1 GPU and 8"
    )


def test_shares_of_a_gpu():
    two = Cluster([{"CPU": 16.0, "GPU": 2.0}], [])
    assert [two.room({"CPU": 1, "GPU": share}) for share in (0.1, 0.3, 0.6, 1, 2, 3)] == [16, 6, 2, 2, 1, 0]
    assert Cluster([{"CPU": 1.0}], []).room({"CPU": 0.1, "GPU": 0}) == 10


TYPES = {
    "max_workers": 4,
    "head_node_type": "cpu",
    "available_node_types": {
        "cpu": {"max_workers": 0, "resources": {"CPU": 8}},
        "gpu": {"max_workers": 3, "resources": {"CPU": 8, "GPU": 1}},
        "big": {"resources": {"CPU": 64, "GPU": 4}, "max_workers": 2},
    },
}


@pytest.fixture
def scaling(monkeypatch, tmp_path):
    """The head of a cluster that adds nodes; none of them is up yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(capacity, "alive", lambda: pytest.fail("the nodes that are up do not count"))

    def write(made):
        (tmp_path / "ray_bootstrap_config.yaml").write_text(made if isinstance(made, str) else yaml.safe_dump(made))

    return write


def test_a_cluster_that_adds_nodes_is_asked_for_its_node_types(scaling):
    scaling(TYPES)
    check_search(config.replace(config.Experiment(), **KTH))
    cluster = capacity.reachable()
    assert (
        cluster.room({"CPU": 1, "GPU": 1}) == 2 * 4 + 2 * 1
    )  # at most four nodes are added: the two best, then others
    assert cluster.room({"CPU": 8}) == 1 + 2 * 8 + 2  # and the head
    line = refusal(check_search, experiment(search__gpus_per_trial=8.0))
    assert "search.gpus_per_trial: a trial needs 8 GPUs, but no node has more than 4 GPUs" in line


@pytest.mark.parametrize(
    "made",
    [
        "{",
        "[]",
        {"available_node_types": None},
        {**TYPES, "available_node_types": {"gpu": {"max_workers": 2, "resources": {}}}},  # detected when it is up
    ],
)
def test_unknown_node_types_refuse_nothing(scaling, made):
    scaling(made)
    assert capacity.reachable() is None
    check_search(experiment(search__gpus_per_trial=8.0))
