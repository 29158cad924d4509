"""Measure trainings on the cluster, each in a process of its own with the resources that its trials will have."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from raypipe.common import terminal
from raypipe.distributed.capacity import Resources, alive, amount
from raypipe.distributed.failures import plain_errors, root_cause
from raypipe.distributed.measuring import Measured


@dataclass(frozen=True)
class Rehearsal:
    """What is measured: a call, the resources that it needs, and the bytes that it needs in any case."""

    call: Callable[[], list[Measured]]
    each: Resources
    least_memory: int = 0


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal has measured; or why nothing could be, and whether for lack of memory."""

    measured: tuple[Measured, ...] = ()
    reason: str | None = None
    no_memory: bool = False


def rehearse(wanted: Mapping[str, Rehearsal]) -> dict[str, Rehearsed]:
    """Measure everything, at the same time as far as the cluster has room, as the trials will be."""
    found: dict[str, Rehearsed] = {}
    pending: dict[Any, str] = {}
    for name, one in wanted.items():
        reason = _refusal(one)
        if reason is None:
            each: dict[str, Any] = {"num_cpus": one.each.get("CPU", 1), "num_gpus": one.each.get("GPU", 0)}
            task = ray.remote(max_calls=1, max_retries=0, **each)(_call)
            pending[task.remote(one.call)] = name
        else:
            found[name] = reason
    with terminal.progress_bar("measure", len(pending), "training", leave=False) as bar:
        while pending:
            done, _ = ray.wait(list(pending))
            for reference in done:
                found[pending.pop(reference)] = _result(reference)
                bar.update()
    return {name: found[name] for name in wanted}


def _call(call: Callable[[], list[Measured]]) -> list[Measured]:
    return call()


def _refusal(one: Rehearsal) -> Rehearsed | None:
    """Why a rehearsal is not tried: no node is up that has room, or more memory than one has."""
    nodes = [node for node in alive().nodes if _has(node, one.each)]
    if not nodes:
        needs = " and ".join(amount(name, value) for name, value in one.each.items() if value)
        return Rehearsed(reason=f"no node that is up has {needs}")
    if one.each.get("GPU", 0) == 0 and one.least_memory > max(map(node_memory, nodes)):
        return Rehearsed(
            reason=f"weights, gradients and optimizer alone need {amount('memory', one.least_memory)}", no_memory=True
        )
    return None


def _result(reference: Any) -> Rehearsed:
    try:
        with plain_errors():
            return Rehearsed(tuple(ray.get(reference)))
    except (OutOfMemoryError, WorkerCrashedError):
        return Rehearsed(reason="the process that measured it was killed, perhaps out of memory", no_memory=True)
    except RayTaskError as error:
        if not isinstance(root_cause(error), torch.OutOfMemoryError | MemoryError):
            raise
        return Rehearsed(reason="out of memory in its first steps", no_memory=True)


def _has(node: Resources, each: Resources) -> bool:
    """Whether a node has these resources in all, busy or not."""
    return all(node.get(name, 0) >= value for name, value in each.items())


def node_memory(node: Resources) -> float:
    """Bytes of memory of a node that were free when Ray started there."""
    return node.get("memory", 0.0) + node.get("object_store_memory", 0.0)
