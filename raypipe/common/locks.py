"""Locks between processes, held by a file and released by the operating system when a process dies."""

import errno
import fcntl
import logging
from pathlib import Path
from typing import Any

import filelock
from filelock import Timeout as Timeout

from raypipe.common.errors import UserError

logger = logging.getLogger(__name__)

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of a file system that has no locks, such as NFS without a lock daemon, or some FUSE and parallel ones."""
QUIET_SECONDS = 5
"""A wait for another process is logged after this time."""


def file_lock(path: str | Path, **settings: Any) -> "FileLock":
    """A lock that does not fall back to files whose existence is the lock: those would outlive a killed process."""
    return FileLock(str(path), fallback_to_soft=False, **settings)


def is_locked(path: Path) -> bool:
    """Whether a process, of this host or another one, holds the lock; nothing is written.

    To find out, the lock is shared for a moment, in which another process cannot acquire it.
    """
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or none that can be locked
        return False
    return False


class FileLock(filelock.FileLock):
    """A `filelock.FileLock` that names the folder if its file system has no locks, and says what it waits for."""

    def acquire(self, timeout: float | None = None, *args: Any, **settings: Any) -> Any:
        """Acquire the lock, as `filelock.FileLock` does. Raises UserError if the file system has no locks."""
        waits = timeout is None and self.timeout < 0 and self.blocking and settings.get("blocking", True)
        try:
            if waits:
                try:
                    return super().acquire(QUIET_SECONDS, *args, **settings)
                except Timeout:
                    logger.warning("waiting for another process, which holds the lock %s", self.lock_file)
            return super().acquire(timeout, *args, **settings)
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            Path(self.lock_file).unlink(missing_ok=True)
            raise UserError(
                f"{Path(self.lock_file).parent}: its file system has no file locks, which keep two processes from "
                "writing the same files; use a folder on a local disk, or mount it with locks (NFS: version 4, or with "
                "a lock daemon and without nolock; Lustre: with flock)"
            ) from None
