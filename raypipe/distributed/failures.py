"""Unwrap the errors of Ray workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from raypipe.common.errors import UserError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Re-raise the UserError of a worker as a UserError; other errors pass through with the worker's traceback."""
    try:
        yield
    except (RayTaskError, TrainingFailedError) as error:
        cause = root_cause(error)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        raise


def root_cause(error: BaseException) -> BaseException:
    """The original exception of a worker, inside the exceptions that Ray wrapped around it."""
    inner: Any = None
    if isinstance(error, WorkerGroupError):
        inner = next(iter(error.worker_failures.values()), None)
    elif isinstance(error, ControllerError):
        inner = error.controller_failure
    elif isinstance(error, RayTaskError):
        inner = error.cause
    else:
        inner = getattr(error, "_base_exc", None)
    return error if not isinstance(inner, BaseException) else root_cause(inner)
