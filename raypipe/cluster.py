"""The Ray that is up: found and joined, never started."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.services import find_bootstrap_address

from raypipe.common.errors import ConfigError

logger = logging.getLogger(__name__)

SECONDS = 5
"""How long a machine has to answer."""
TRIES = "RAY_gcs_server_port_wait_time_s"
"""How often Ray tries, half a minute each; by itself twenty times."""
SETTINGS: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
"""Of `ray.init`, joined or started."""


def join() -> bool:
    """Join the Ray that RAY_ADDRESS names, or else the one that `ray start` made here; False if there is none.

    RAY_ADDRESS=local means none. What another program started for itself is left alone: it ends with that program.
    Raises ConfigError if the Ray that is named does not answer or turns us away.
    """
    named = os.environ.get("RAY_ADDRESS") or "auto"
    if named == "local":
        return False
    address = find_bootstrap_address(None) if named == "auto" else named
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
