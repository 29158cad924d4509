"""Whether work fits on the cluster: each worker on one node, and all workers together on all nodes.

Ray lets work that fits nowhere wait forever, so commands check this before they write anything.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import yaml

from raypipe.common.errors import UserError
from raypipe.config import Experiment
from raypipe.distributed.connection import SCALING_CONFIG, scales_up
from raypipe.distributed.training_job import Settings
from raypipe.workspace import bucket
from raypipe.workspace.layout import Workspace

Resources = Mapping[str, float]
"""Amounts by Ray's names of resources: CPU, GPU, memory (in bytes)."""


@dataclass(frozen=True)
class Demand:
    """Workers that must run at the same time.

    who: a worker, in words. each: resources of a worker. fields: for each resource, the field that sets it, and what to
    do if it is too large. count: number of workers, and count_field: the field that sets it.
    """

    who: str
    each: Resources
    fields: Mapping[str, tuple[str, str]]
    count: int = 1
    count_field: str = ""


@dataclass(frozen=True)
class Cluster:
    """nodes: resources of each node that is alive, or of the head. addable: resources of each node that the cluster
    could add, of which it adds at most `most_added`."""

    nodes: list[Resources]
    addable: list[Resources]
    most_added: int = 0

    def room(self, each: Resources) -> int:
        """Number of workers, each with these resources, that fit on the nodes."""
        added = sorted((_room(node, each) for node in self.addable), reverse=True)[: self.most_added]
        return sum(_room(node, each) for node in self.nodes) + sum(added)

    def check(self, demand: Demand) -> None:
        """Raise UserError if a demand can never be met."""
        each = {name: amount for name, amount in demand.each.items() if amount > 0}
        nodes = [*self.nodes, *(self.addable if self.most_added else [])]
        most = {name: max((node.get(name, 0) for node in nodes), default=0) for name in each}
        lacking = [name for name, amount in each.items() if amount > most[name]]
        if lacking:
            raise UserError("; ".join(_lacks(demand, name, most[name]) for name in lacking))
        field, remedy = demand.fields["CPU"]
        room = self.room(each)
        if room == 0:
            kinds = sorted({_amounts(node, each) for node in nodes})
            raise UserError(
                f"{field}: {demand.who} needs {_amounts(each)} on one node, but the nodes have {' or '.join(kinds)}; "
                f"{remedy}"
            )
        if room < demand.count:
            needs = _amounts({name: demand.count * value for name, value in each.items()})
            has = _amounts({name: self._total(name) for name in each})
            fit = f"room for {room} with {_amounts(each)} on one node"
            raise UserError(
                f"{demand.count_field}: {demand.count} workers need {needs}, but the cluster has {has}, {fit}; "
                "use fewer workers"
            )

    def _total(self, name: str) -> float:
        added = sorted((node.get(name, 0) for node in self.addable), reverse=True)[: self.most_added]
        return sum(node.get(name, 0) for node in self.nodes) + sum(added)


def _room(node: Resources, each: Resources) -> int:
    """Number of workers that fit on a node. A worker with less than a GPU gets a share of a single one."""
    room = []
    for name, value in each.items():
        has = node.get(name, 0)
        if name == "GPU" and 0 < value < 1:
            room.append(math.floor(has) * _times(1, value))
        elif value > 0:
            room.append(_times(has, value))
    return min(room)


def _times(has: float, value: float) -> int:
    """How often a value fits, despite rounding: 0.1 fits ten times in 1."""
    return math.floor(has / value + 1e-9)


def _lacks(demand: Demand, name: str, most: float) -> str:
    field, remedy = demand.fields[name]
    needs = _amounts({name: demand.each[name]})
    return f"{field}: {demand.who} needs {needs}, but no node has more than {_amounts({name: most})}; {remedy}"


def _amounts(resources: Resources, names: Iterable[str] | None = None) -> str:
    """Amounts in words, such as `4 CPUs and 1 GPU`. names: the resources to list; None for all."""
    return " and ".join(amount(name, resources.get(name, 0)) for name in (resources if names is None else names))


def amount(name: str, value: float) -> str:
    """The amount of a resource in words, such as `4 CPUs`."""
    if name == "memory":
        return f"{value / 2**30:.3g} GiB of memory"
    return f"{value:g} {name}{'' if value == 1 else 's'}"


def alive() -> Cluster:
    """The nodes of the cluster that are alive."""
    return Cluster([node["Resources"] for node in ray.nodes() if node["Alive"]], [])


def reachable() -> Cluster | None:
    """The nodes that the cluster has or, if it adds nodes on demand, can have; None if these are not known."""
    if not scales_up():
        return alive()
    try:
        return _by_node_types(yaml.safe_load(SCALING_CONFIG.expanduser().read_text()))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        return None  # Ray reads the file itself, and reports what is wrong with it


def _by_node_types(made: Mapping[str, Any]) -> Cluster | None:
    """The cluster by the config of `ray up`; None if the resources of a node type are left to be detected later."""
    most = int(made.get("max_workers", 2))  # Ray's default
    nodes: list[Resources] = []
    addable: list[Resources] = []
    for name, kind in made["available_node_types"].items():
        resources = {key: float(value) for key, value in (kind.get("resources") or {}).items()}
        count = min(int(kind.get("max_workers", most)), most)
        is_head = name == made.get("head_node_type")
        if not resources and (count or is_head):
            return None
        nodes += [resources] * is_head
        addable += [resources] * count
    return Cluster(nodes, addable, most)


def check_training(settings: Settings) -> None:
    """Raise UserError if the workers of a training do not fit on the cluster."""
    _check([_training(settings.num_workers, settings.cpus_per_worker, settings.use_gpu, "--num-gpus")])


def check_search(experiment: Experiment) -> None:
    """Raise UserError if a trial of a search, or one of its other trainings, does not fit on the cluster."""
    search, train = experiment.search, experiment.train
    gpus = search.gpus_per_trial
    together = search.workers_per_trial > 1
    trial = _trial(experiment, "a worker of a trial" if together else "a trial", float(gpus > 0) if together else gpus)
    refit = _training(train.num_workers, train.cpus_per_worker, gpus > 0, "search.gpus_per_trial")
    _check([trial, refit])


def check_evaluation(experiment: Experiment) -> None:
    """Raise UserError if the scoring of a combination does not fit on a node."""
    _check([_trial(experiment, "the scoring of a combination", min(1.0, experiment.search.gpus_per_trial), count=1)])


def check_nodes(workspace: Workspace) -> None:
    """Raise UserError if the storage root is in a bucket and the cluster has, or adds, more nodes than this one.

    Trials and trainings work on files that all of them share, and of a bucket only this node has a local folder.
    """
    uri = bucket.origin(workspace.storage)
    if uri is not None and (scales_up() or len(alive().nodes) > 1):
        raise UserError(
            f"--storage: {uri} is a bucket, with which a search runs on one node, but the cluster has more; give a "
            "folder that all nodes share, or set RAY_ADDRESS=local"
        )


def _check(demands: Iterable[Demand]) -> None:
    cluster = reachable()
    if cluster is not None:
        for demand in demands:
            cluster.check(demand)


def _trial(experiment: Experiment, who: str, gpus: float, count: int | None = None) -> Demand:
    search = experiment.search
    return Demand(
        who,
        {"GPU": gpus, "CPU": search.cpus_per_trial},
        {
            "GPU": ("search.gpus_per_trial", "to use CPUs alone, set --search.gpus_per_trial 0"),
            "CPU": ("search.cpus_per_trial", "lower --search.cpus_per_trial"),
        },
        search.workers_per_trial if count is None else count,
        "search.workers_per_trial",
    )


def _training(workers: int, cpus: float, use_gpu: bool, gpu_field: str) -> Demand:
    remedy = "omit it" if gpu_field.startswith("--") else f"set --{gpu_field} 0"
    return Demand(
        "a training worker",
        {"GPU": float(use_gpu), "CPU": cpus},
        {
            "GPU": (gpu_field, f"to train on CPUs, {remedy}"),
            "CPU": ("train.cpus_per_worker", "lower --train.cpus_per_worker"),
        },
        workers,
        gpu_field if use_gpu and gpu_field.startswith("--") else "train.num_workers",
    )
