"""The lock of an experiment in a bucket, held by one machine at a time.

Whoever wants it writes a ticket of its own and then lists all tickets; it has the lock if there is no other, and else
removes its own. Of two machines at least the later one sees the other's ticket, wherever a listing shows what was
written before it, as S3, GCS and Azure do; so this needs no conditional writes. A ticket is written again every
`BEAT` seconds: from its age, by the clock of the bucket, others see whether its owner lives.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from raypipe.common.errors import ConfigError, UserError
from raypipe.data.shards.connection import MissingFolderError
from raypipe.data.shards.storage import RemoteFile, RemoteFolder

BEAT = 15.0
"""Seconds between two signs of life of the owner."""
SILENT = 60.0
"""Seconds without a sign of life after which a lock may be broken."""
LOCKS = ".raypipe/lock"
BREAK = "add --break-lock if it has died"


class LockLostError(UserError):
    """Another process has broken the lock."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock. since: time in UTC. machine: random name of its local folder for this storage."""

    process: int
    host: str
    since: str
    machine: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Lock:
    """The lock of an experiment. remote: its folder in the bucket. machine: see `Owner`.

    Only one process of a machine may use it at a time: a ticket of this machine is one of a process that has died.
    """

    def __init__(self, remote: RemoteFolder, machine: str) -> None:
        self._remote, self._machine = remote / LOCKS, machine
        self._ticket = f"{uuid.uuid4().hex}.json"
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        self._owner = Owner(os.getpid(), socket.gethostname(), now, machine)

    def acquire(self, *, break_lock: bool) -> None:
        """Acquire the lock. Raises ConfigError, which names the owner, if another machine holds it.

        break_lock: wait until it is certain that the owner is alive, or has been silent for `SILENT` seconds; in the
        latter case, the lock is taken from it.
        """
        self._write()
        try:
            for name, file in self._others().items():
                owner = self._read(name)
                if owner is not None and owner.machine != self._machine:
                    self._wait_for_silence(owner, file, break_lock)
                self._remote.delete(name)
        except BaseException:
            with suppress(UserError):
                self.release()
            raise

    def check_free(self) -> None:
        """Raise ConfigError if another machine holds the lock; nothing is written."""
        for name, file in self._tickets().items():
            owner = self._read(name)
            if owner is not None and owner.machine != self._machine:
                raise self._refusal(owner, max(0.0, time.time() - file.mtime / 1e9), BREAK)

    def renew(self) -> None:
        """Give a sign of life. Raises LockLostError if another process has taken the lock."""
        self.check()
        self._write()

    def check(self) -> None:
        """Raise LockLostError if another process has taken the lock."""
        others = self._tickets()
        if self._ticket not in others and others:
            owner = self._read(next(iter(others)))
            raise LockLostError(
                f"{self._place}: {owner or 'another process'} has broken the lock of this process and goes on; this "
                "process has ended"
            )

    def release(self) -> None:
        self._remote.delete(self._ticket)

    def _wait_for_silence(self, owner: Owner, file: RemoteFile, break_lock: bool) -> None:
        began, age = time.monotonic(), self._age(file)
        while break_lock and age < SILENT and time.monotonic() - began < 2 * SILENT:
            time.sleep(min(BEAT / 3, SILENT - age + 1))
            self._write()  # a sign of life of this process, by which the age is measured
            now = self._tickets().get(file.name)
            if now is None:
                return
            if now.mtime != file.mtime:
                file, age = now, 0.0
                break
            age = self._age(file)
        if break_lock and age >= SILENT:
            return
        raise self._refusal(owner, age, "start another search with a different --name" if break_lock else BREAK)

    def _refusal(self, owner: Owner, age: float, hint: str) -> ConfigError:
        return ConfigError(
            f"{self._place}: {owner} holds the lock of this experiment since {owner.since} UTC; its last sign of life, "
            f"due every {BEAT:.0f} s, is {age:.0f} s old; wait until it ends, or {hint}"
        )

    @property
    def _place(self) -> str:
        return self._remote.uri.replace(f"/{LOCKS}", "")

    def _age(self, file: RemoteFile) -> float:
        """Seconds from the last sign of life of a ticket to that of this process."""
        mine = self._tickets().get(self._ticket)
        return 0.0 if mine is None else max(0.0, (mine.mtime - file.mtime) / 1e9)

    def _write(self) -> None:
        self._remote.write(self._ticket, json.dumps(asdict(self._owner)).encode())

    def _others(self) -> Mapping[str, RemoteFile]:
        return {name: file for name, file in self._tickets().items() if name != self._ticket}

    def _tickets(self) -> dict[str, RemoteFile]:
        return tickets(self._remote)

    def _read(self, name: str) -> Owner | None:
        return read_owner(self._remote, name)


def tickets(folder: RemoteFolder) -> dict[str, RemoteFile]:
    """The tickets in the lock folder of an experiment, by name."""
    return {name: file for name, file in (folder.files_or_none() or {}).items() if name.endswith(".json")}


def read_owner(folder: RemoteFolder, name: str) -> Owner | None:
    """The owner of a ticket; None if it has just been removed. Raises UserError if it cannot be read."""

    def read() -> Owner:
        try:
            return Owner(**json.loads(b"".join(folder.read(name))))
        except (json.JSONDecodeError, TypeError) as error:
            raise OSError(f"it is damaged: {error}") from None

    try:
        found: Owner = folder.retry(f"{folder}/{name}", read)
        return found
    except MissingFolderError:
        return None


def running(remote: RemoteFolder) -> Owner | None:
    """The owner of an experiment's lock, if it has given a sign of life lately; None otherwise."""
    folder = remote / LOCKS
    for name, file in tickets(folder).items():
        if time.time() - file.mtime / 1e9 < SILENT:
            return read_owner(folder, name)
    return None
