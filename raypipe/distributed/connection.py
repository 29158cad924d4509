"""Connect a command to Ray: join a running cluster, or start Ray on this machine."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from raypipe.common.cpus import cpu_count
from raypipe.common.errors import ConfigError
from raypipe.distributed.ray_internals import head_address

logger = logging.getLogger(__name__)

SECONDS = 5
"""Timeout of the connection test, in seconds."""
CONNECT_ATTEMPTS = "RAY_gcs_server_port_wait_time_s"
"""Environment variable: how many times Ray tries to connect, half a minute each. Ray's default is 20."""
SETTINGS: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
"""Arguments of `ray.init`, whether it joins or starts Ray."""
SCALING_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""The config of a cluster made by `ray up`, on its head."""
TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: a folder that torch creates as soon as it counts the parameters of a network."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
"""glibc settings that keep the memory of freed tensors for the next step. By default glibc returns it to the system and
requests it again, which takes a third of the time of a forecast on a CPU (experiments/benchmarks/allocator.py).
2^25 is the largest mmap threshold that glibc accepts."""


def join() -> bool:
    """Join the Ray cluster at RAY_ADDRESS, or else the one that `ray start` started on this machine.

    Returns whether a cluster was joined; RAY_ADDRESS=local joins none. A Ray instance that another program started with
    `ray.init` is never joined, since it ends with that program. Raises ConfigError if the cluster at RAY_ADDRESS does
    not answer, or if a cluster that answers refuses the connection.
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
        logger.warning(
            "no Ray cluster answers at %s, the address that `ray start` recorded; continuing without it", address
        )
        return False
    try:
        with _one_connection_attempt():
            ray.init(address, **SETTINGS)
    except Exception as error:  # Ray raises different types for a wrong version, a missing token, ...
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"RAY_ADDRESS: cannot join the Ray cluster at {address} ({reason}); set RAY_ADDRESS=local to run without it"
        ) from None
    return True


@contextmanager
def _one_connection_attempt() -> Iterator[None]:
    """Limit Ray to one connection attempt. Reset afterwards, so that a Ray started later does not inherit the limit."""
    before = os.environ.get(CONNECT_ATTEMPTS)
    os.environ.setdefault(CONNECT_ATTEMPTS, "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ[CONNECT_ATTEMPTS]


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT or ray://HOST:PORT; the Ray client would try for half a minute."""
    host_port = address.removeprefix("ray://")
    match = re.fullmatch(r"\[?(.+?)\]?:(\d+)", host_port)
    if match is None or "/" in host_port:
        raise ConfigError(f"RAY_ADDRESS: must be HOST:PORT, as printed by `ray start`, or `local`, not {address!r}")
    try:
        socket.create_connection((match[1], int(match[2])), SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def start_ray(*, dashboard: bool = False, folder: Path | None = None) -> None:
    """Join a running cluster (`join`), or start Ray on this machine. Keeps an existing connection of this process.

    folder: where a Ray that is started here keeps its logs and sockets; None: where Ray does by default.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # reports are collected at this polling interval
    # Trainings save checkpoints at all times, so they need no process that announces the end of a spot machine.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Ray Tune's own log files are slow to write and repeat what the study and trials.parquet hold.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)  # inherited by the workers if Ray is started here
    if ray.is_initialized() or join():
        return
    try:
        place: dict[str, Any] = {} if folder is None else {"_temp_dir": str(folder)}
        ray.init("local", num_cpus=cpu_count(), include_dashboard=dashboard, **place, **SETTINGS)
    except Exception as error:  # Ray raises different types when CPU time, memory or disk space run out
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"Ray did not start on this machine ({reason}); free memory and disk space, or try again later"
        ) from None


@contextmanager
def passing_ray() -> Iterator[Path]:
    """The folder for the Ray that a block starts: it ends with the block, and its folder is deleted.

    A cluster that the block has joined is left; an earlier connection of this process stays. What torch would keep of
    compiled code in the folder for temporary files is there too.
    """
    before, cache = ray.is_initialized(), os.environ.get(TORCH_CACHE)
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ[TORCH_CACHE] = cache or folder
        try:
            yield Path(folder)
        finally:
            if cache is None:
                del os.environ[TORCH_CACHE]
            if not before:
                ray.shutdown()


def scales_up() -> bool:
    """Whether this is the head of a cluster made by `ray up`, which adds nodes for pending tasks."""
    return SCALING_CONFIG.expanduser().exists()
