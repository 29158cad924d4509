"""Errors of Ray's workers, without Ray's wrapping."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayTaskError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError

from raypipe.common.errors import UserError


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise the UserError of a worker as if it were raised here; any other error keeps the worker's traceback."""
    try:
        yield
    except (RayTaskError, TrainingFailedError) as error:
        cause = root_cause(error)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        raise


def root_cause(error: BaseException) -> BaseException:
    """What a worker raised first, under all that Ray wrapped around it."""
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
