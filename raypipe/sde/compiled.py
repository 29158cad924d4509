"""The networks that see one input as one compiled graph, or as they are where nothing can compile them."""

import logging
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from raypipe.sde.dynamics import Evaluate, Field, evaluate

log = logging.getLogger(__name__)

GRAPHS = 64
"""Most graphs of a process. One serves all models of an architecture, but each choice of fields has its own."""


class CompiledEvaluate:
    """`evaluate`, compiled at its first call.

    Weights and the batch's size are inputs of the graph: other models of the same architecture and other batches
    are not compiled anew. What cannot be compiled is evaluated as it is, after one warning.
    """

    def __init__(self) -> None:
        self._evaluate: Evaluate = torch.compile(  # type: ignore[call-overload]  # whose overloads lack the limit
            evaluate, fullgraph=True, dynamic=True, recompile_limit=GRAPHS
        )

    def __call__(self, fields: Sequence[Field], x: Tensor, u: Tensor) -> Sequence[Tensor]:
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        rows = len(x)
        if rows == 1:  # the one size that compilers make a graph of its own for
            x, u = x.repeat(2, 1, 1, 1), u.repeat(2)
        try:
            answers = self._evaluate(tuple(fields), x, u)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            log.warning("forecasts go on without torch.compile, which failed: %s", str(error).splitlines()[0])
            self._evaluate = evaluate
            answers = evaluate(fields, x, u)
        return [answer[:rows] for answer in answers]


@cache
def compiled_evaluate() -> Evaluate:
    """The one of this process."""
    return CompiledEvaluate()
