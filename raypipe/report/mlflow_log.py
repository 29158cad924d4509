"""Keeps runs in MLflow up to date while their trainings run, from a thread that never holds them up.

The runs are made of the files of the experiment (`mlflow_runs`), so nothing is lost while the server does not answer,
or if the command is killed.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from raypipe.common import terminal
from raypipe.common.errors import first_line
from raypipe.common.interrupts import was_interrupted
from raypipe.config import Component, Experiment
from raypipe.report.live import Logs
from raypipe.report.mlflow_runs import Run, logged_metrics, search_runs, training_run
from raypipe.report.mlflow_store import PATIENCE, Runs, public, store_uri
from raypipe.workspace.layout import Workspace

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""Least time between two updates."""
GIVE_UP_SECONDS = 15.0
"""Longest time for which the end of a command waits without any answer."""
SHARE, MOST = 0.02, 60.0
"""Updates come less often, at most MOST seconds apart, where they would take more than this share of a CPU's time."""


@contextmanager
def search_in_mlflow(workspace: Workspace, wanted: bool) -> Iterator[None]:
    """Log a search to MLflow during a `with` block. wanted: --mlflow; if False, do nothing.

    The caller holds the lock of the search. Raises nothing: the search goes on without MLflow.
    """
    logs = Logs()
    with _logged(workspace, lambda outcome: search_runs(workspace, logs.read, outcome), wanted):
        yield


@contextmanager
def training_in_mlflow(
    workspace: Workspace, component: Component, name: str, key: str, experiment: Experiment, wanted: bool
) -> Iterator[None]:
    """Log a training to MLflow during a `with` block. For the arguments, see `training_run` and `search_in_mlflow`."""
    logs, run = Logs(), training_run(workspace, component, name, key, experiment)

    def read(outcome: str | None) -> list[Run]:
        logged = logs.read(workspace.run(component, name))
        return [replace(run, state=outcome or "running", metrics=logged_metrics(logged))] if logged else []

    with _logged(workspace, read, wanted):
        yield


@contextmanager
def _logged(workspace: Workspace, read: Callable[[str | None], list[Run]], wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    log = MlflowLog(workspace.folder, read)
    terminal.say(f"MLflow  {public(log.uri)}")
    log.start()
    outcome = "failed"
    try:
        yield
        outcome = "finished"
    except BaseException as error:
        outcome = "interrupted" if was_interrupted(error) else "failed"
        raise
    finally:
        log.end(outcome)


class MlflowLog:
    """Runs in MLflow that follow an experiment.

    folder: of the experiment. read: returns the runs as they should be; its argument is the state in which the command
    has ended, None while it runs.
    """

    def __init__(self, folder: Path, read: Callable[[str | None], list[Run]]) -> None:
        self._folder, self._read = folder, read
        self.uri = store_uri(folder)
        self._runs: Runs | None = None
        self._over = threading.Event()
        self._outcome: str | None = None
        self._thread = threading.Thread(target=self._keep, name="mlflow", daemon=True)
        self._failed = False
        self._answered = self._tried = -float(PATIENCE)

    def start(self) -> None:
        """Begin to update the runs."""
        self._thread.start()

    def end(self, outcome: str) -> None:
        """Update the runs a last time, and give up after GIVE_UP_SECONDS without an answer."""
        self._outcome, began = outcome, time.monotonic()
        self._over.set()
        while self._thread.is_alive() and time.monotonic() - max(began, self._answered) < GIVE_UP_SECONDS:
            self._thread.join(0.1)
        if self._thread.is_alive():
            self._tell("no answer")

    def _keep(self) -> None:
        pause = SECONDS
        while not self._over.wait(pause):
            began = time.thread_time()
            self._write(None)
            pause = min(MOST, max(SECONDS, (time.thread_time() - began) / SHARE))
        if not self._failed or time.monotonic() - self._tried > PATIENCE:
            self._write(self._outcome)

    def _write(self, outcome: str | None) -> None:
        """Update all runs; if that fails, log it in a line, once, and look at the next update for what is there."""
        try:
            runs = self._read(outcome)
            if not runs:
                return
            self._answered = time.monotonic()
            self._runs = self._runs or Runs(self.uri, self._folder)
            for run in runs:
                self._answered = time.monotonic()
                self._runs.log(run)
        except Exception as error:  # whatever happens to MLflow must not end the search
            self._runs, self._tried = None, time.monotonic()
            self._tell(first_line(error))
            return
        if self._failed:
            logger.warning("MLflow: %s is reached again, and has everything", public(self.uri))
        self._failed = False

    def _tell(self, reason: str) -> None:
        if not self._failed:
            logger.warning(
                "MLflow: nothing is logged to %s (%s); the search goes on, and what is missing is logged once that "
                "works again, or when the search is resumed with --mlflow",
                *map(public, (self.uri, reason)),
            )
        self._failed = True
