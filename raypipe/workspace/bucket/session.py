"""Store an experiment in a bucket while a command works on its local folder."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from raypipe.common import terminal
from raypipe.common.errors import ConfigError, UserError, first_line
from raypipe.common.locks import Timeout, file_lock
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace.bucket import places
from raypipe.workspace.bucket.lock import BEAT, Lock, LockLostError
from raypipe.workspace.bucket.mirror import Mirror

POLL = 2.0
"""Seconds between two looks for changes."""
SHARE = 0.02
"""Largest fraction of the time that is spent looking for changes."""
PAUSE = 30.0
"""Largest number of seconds between two attempts to store something while the bucket does not take it."""
PATIENCE = 60.0
"""Seconds, at the end of a command, after which what the bucket does not take is left for the next command."""
ATTEMPTS, WAIT = 5, 0.5
"""Number of times that an operation is tried, and seconds before the second attempt, which double each time."""
LOOK_SECONDS = 10.0
"""Seconds to wait for another process of this machine that only looks at an experiment."""

logger = logging.getLogger(__name__)


def mirror_of(storage: Path, name: str) -> Mirror:
    """The mirror of an experiment in the bucket of which `storage` is the local folder."""
    uri = places.origin(storage)
    assert uri is not None
    return Mirror(
        RemoteFolder(uri, attempts=ATTEMPTS, wait=WAIT) / name, storage / name, places.home(storage) / f"{name}.tmp"
    )


@contextmanager
def alone(storage: Path, name: str, seconds: float) -> Iterator[None]:
    """Exclude other processes of this machine from an experiment's local folder; raises Timeout."""
    lock = file_lock(places.home(storage) / f"{name}.lock")
    lock.acquire(timeout=seconds)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def stored(storage: Path, name: str, *, break_lock: bool = False) -> Iterator[None]:
    """Keep an experiment in the bucket of its storage root for the duration of a `with` block; nothing for a folder.

    The experiment is locked, and fetched if another machine stored it last. Then a thread stores its changes every few
    seconds, and the rest is stored at the end. While the bucket does not take them, the block goes on.

    break_lock: see `Lock.acquire`. Raises ConfigError if another process works on the experiment, if it cannot be
    fetched, or if something is not stored in the end; all of it is then in the local folder, and the next command on
    this machine that writes to the storage root stores it.
    """
    if places.origin(storage) is None:
        yield
        return
    mirror = mirror_of(storage, name)
    with ExitStack() as stack:
        try:
            stack.enter_context(alone(storage, name, LOOK_SECONDS))
        except Timeout:
            raise ConfigError(f"{mirror.remote}: another process of this machine works on this experiment") from None
        lock = Lock(mirror.remote, places.machine(storage))
        lock.acquire(break_lock=break_lock)
        stack.callback(_release, lock)
        mirror.fetch()
        left = unsaved(storage, name)
        left.touch()
        background = Background(mirror, lock)
        try:
            with background.running():
                yield
        finally:
            if background.is_done:
                left.unlink(missing_ok=True)


def unsaved(storage: Path, name: str) -> Path:
    """File that exists while a command works on an experiment, and afterwards if it could not store all."""
    return places.home(storage) / f"{name}.unsaved"


def _release(lock: Lock) -> None:
    with suppress(UserError):  # it may be lost, or the bucket; the next command of this machine replaces its lock
        lock.release()


class Background:
    """The threads that store the changes of an experiment and renew its lock.

    is_done: whether nothing was left to store in the end.
    """

    def __init__(self, mirror: Mirror, lock: Lock) -> None:
        self._mirror, self._lock = mirror, lock
        self._lost: LockLostError | None = None
        self._failure: str | None = None
        self.is_done = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the threads for the duration of a `with` block; then store the rest.

        Raises LockLostError if another process broke the lock, which also interrupts the block, and ConfigError if the
        rest cannot be stored.
        """
        with self._thread(self._beat):
            try:
                with self._thread(self._watch):
                    yield
            except BaseException:
                if self._lost is not None:
                    raise self._lost from None
                self.is_done = self._try_to_store()
                raise
            self._finish()
            self.is_done = True

    @contextmanager
    def _thread(self, work: Callable[[threading.Event], None]) -> Iterator[None]:
        ended = threading.Event()
        thread = threading.Thread(target=work, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):
                try:
                    self._lock.renew()
                except LockLostError as error:
                    self._lose(error)
                except UserError:  # the bucket does not answer; that is said where something is stored
                    continue

    def _watch(self, ended: threading.Event) -> None:
        pause = POLL
        while not ended.wait(pause):
            began = time.monotonic()
            changed = self._mirror.changed()
            looking = (time.monotonic() - began) / SHARE
            failed = changed and not self._try_to_store()
            pause = min(PAUSE, 2 * pause) if failed else max(POLL, looking, time.monotonic() - began)

    def _finish(self) -> None:
        until, pause = time.monotonic() + PATIENCE, 1.0
        while not self._try_to_store():
            if self._lost is not None:
                raise self._lost
            if time.monotonic() > until:
                raise ConfigError(
                    f"{self._mirror.remote}: not all is stored ({self._failure}); it is in {self._mirror.folder}, and "
                    "the next command on this machine with this --storage stores it"
                )
            time.sleep(pause)
            pause *= 2
        terminal.say(f"stored   {self._mirror.remote}")

    def _try_to_store(self) -> bool:
        """Whether all changes are stored. The first failure of several is logged, and the end of the failures."""
        place = self._mirror.remote
        try:
            self._mirror.store(self._lock.check)
        except LockLostError as error:
            self._lose(error)
            return False
        except (UserError, OSError) as error:
            if self._failure is None:
                logger.warning("%s: what is new is not stored yet, and tried again (%s)", place, first_line(error))
            self._failure = first_line(error)
            return False
        if self._failure is not None:
            logger.warning("%s: all is stored again", place)
        self._failure = None
        return True

    def _lose(self, error: LockLostError) -> None:
        if self._lost is None:
            self._lost = error
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)  # which also ends a wait in the operating system
