"""The Ray that a command works on: the one that is up, joined, or one started on this machine."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raypipe.common.errors import ConfigError
from raypipe.distributed.ray_internals import head_address

logger = logging.getLogger(__name__)

SECONDS = 5
"""How long a machine has to answer."""
TRIES = "RAY_gcs_server_port_wait_time_s"
"""How often Ray tries, half a minute each; by itself twenty times."""
SETTINGS: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
"""Of `ray.init`, joined or started."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
"""glibc keeps tensors' memory for the next step instead of handing it back to the system and asking for it again, which
costs a CPU a third of a forecast (experiments/benchmarks/allocator.py). 2^25 is the most that it takes."""


def join() -> bool:
    """Join the Ray that RAY_ADDRESS names, or else the one that `ray start` made here; False if there is none.

    RAY_ADDRESS=local means none. What another program started for itself is left alone: it ends with that program.
    Raises ConfigError if the Ray that is named does not answer or turns us away.
    """
    named = os.environ.get("RAY_ADDRESS") or "auto"
    if named == "local":
        return False
    address = head_address() if named == "auto" else named
    if not address:
        return False
    if not _answers(address):
        if named != "auto":
            raise ConfigError(f"RAY_ADDRESS: no Ray cluster answers at {address}; start it, or unset RAY_ADDRESS")
        logger.warning("no Ray answers at %s, where `ray start` made one; going on without it", address)
        return False
    try:
        with _one_try():
            ray.init(address, **SETTINGS)
    except Exception as error:  # another version, no token, ...: Ray says it in several ways
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"RAY_ADDRESS: the Ray at {address} cannot be joined ({reason}); RAY_ADDRESS=local does without it"
        ) from None
    return True


@contextmanager
def _one_try() -> Iterator[None]:
    """Only while joining: a Ray that starts here later must not inherit it."""
    before = os.environ.get(TRIES)
    os.environ.setdefault(TRIES, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRIES]


def _answers(address: str) -> bool:
    if address.startswith("ray://"):
        return True  # Ray's client asks for itself
    match = re.fullmatch(r"\[?(.+?)\]?:(\d+)", address)
    if match is None or "/" in address:
        raise ConfigError(f"RAY_ADDRESS: must be HOST:PORT, as `ray start` prints it, or local, not {address!r}")
    try:
        socket.create_connection((match[1], int(match[2])), SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def start_ray(*, dashboard: bool = False) -> None:
    """Join the Ray that is up (`join`), or start one on this machine; whoever joined already, stays."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for the next look
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # The study and trials.parquet keep what Ray Tune would write of every trial once more, and it takes its time.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)  # workers of a Ray that starts here begin with it
    if ray.is_initialized() or join():
        return
    try:
        ray.init("local", include_dashboard=dashboard, **SETTINGS)
    except Exception as error:  # an overloaded or full machine, of which Ray says so in several ways
        reason = " ".join(str(error).split())
        raise ConfigError(f"Ray did not start on this machine ({reason}); try again, or free memory and disk") from None


def scales_up() -> bool:
    """Whether this is the head of a cluster that `ray up` made, which starts nodes for what waits."""
    return Path("~/ray_bootstrap_config.yaml").expanduser().exists()
