"""Evaluate several networks on one input as a single graph of torch.compile, or uncompiled if that fails."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from raypipe.sde.dynamics import Evaluate, Field, evaluate

log = logging.getLogger(__name__)

GRAPHS = 64
"""Largest number of graphs per process. Each architecture needs one for each set of fields that is evaluated."""


class CompiledEvaluate:
    """`raypipe.sde.dynamics.evaluate`, compiled at the first call.

    Weights and batch size are inputs of the graph, so other models of the same architecture and other batch sizes do
    not compile again. If compilation fails, a warning is logged once and the networks are evaluated uncompiled.
    """

    def __init__(self) -> None:
        self._evaluate: Evaluate = torch.compile(  # type: ignore[call-overload]  # overloads lack recompile_limit
            evaluate, fullgraph=True, dynamic=True, recompile_limit=GRAPHS
        )

    def __call__(self, fields: Sequence[Field], x: Tensor, u: Tensor, noise: Tensor | None = None) -> Sequence[Tensor]:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        rows = len(x)
        if rows == 1:  # torch.compile would specialize a graph to batch size 1
            x, u = x.repeat(2, 1, 1, 1), u.repeat(2)
            noise = None if noise is None else noise.repeat(2, 1, 1, 1)
        try:
            answers = self._evaluate(tuple(fields), x, u, noise)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            log.warning("torch.compile failed, so the networks run uncompiled: %s", str(error).splitlines()[0])
            self._evaluate = evaluate
            answers = evaluate(fields, x, u, noise)
        return [answer[:rows] for answer in answers]


@cache
def compiled_evaluate() -> Evaluate:
    """The `CompiledEvaluate` that is shared by the whole process."""
    return CompiledEvaluate()
