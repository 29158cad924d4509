"""The tracking store of MLflow: which one, and the runs of an experiment in it."""

import logging
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raypipe.common.errors import UserError, first_line
from raypipe.common.extras import need
from raypipe.common.files import atomic_path
from raypipe.report.mlflow_runs import Run

URI = "MLFLOW_TRACKING_URI"
OWNER, KEY = "raypipe.experiment", "raypipe.training"
"""Tags by which the runs of an experiment's folder are found again, so that each training has one run."""
STATE = "raypipe.state"
"""Tag with the state of a run, which says more than its status."""
PARENT = "mlflow.parentRunId"
STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "stopped": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
}
"""MLflow's status of a run by its state."""
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
FOLDER = "mlruns"
"""Folder of the local store in that of an experiment."""
PATIENCE = 10
"""Longest time in seconds that a request waits for an answer."""
BATCH, PARAMS = 1000, 100
"""Largest numbers of metrics and of params that MLflow takes at once."""
LONGEST = 5000
"""Number of characters of a param or tag that are kept."""


def check_tracking() -> None:
    """Raise UserError if MLflow is not installed, or if MLFLOW_TRACKING_URI cannot be that of a tracking store.

    The store is not contacted.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(PATIENCE))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # what fails is tried again at the next update
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line for each run that ends
    mlflow = need("mlflow", "mlflow", "--mlflow")
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it logs each migration of a new database
    uri = os.environ.get(URI)
    if not uri:
        return
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https"):
            if not parts.hostname or parts.port == 0:
                raise ValueError("no host, or port 0")
        elif parts.scheme.partition("+")[0] in DATABASES:
            need("sqlalchemy", "mlflow", "--mlflow").make_url(uri)
        else:
            mlflow.MlflowClient(tracking_uri=uri)
    except Exception as error:  # of urllib, SQLAlchemy and MLflow, all about this text
        raise UserError(
            f"{URI}: {public(uri)!r} is not the address of a tracking store ({public(first_line(error).strip())}); "
            "set it to http://HOST:PORT or sqlite:////FOLDER/mlflow.db, or unset it to log to the experiment's folder"
        ) from None


def public(text: str) -> str:
    """A text without the credentials of the addresses in it, and not longer than a line or two."""
    return re.sub(r"//[^/@\s]*@", "//", text)[:300]


def store_uri(folder: Path) -> str:
    """MLFLOW_TRACKING_URI, else a database in the folder of the experiment."""
    return os.environ.get(URI) or f"sqlite:///{folder.resolve() / FOLDER / 'mlflow.db'}"


@dataclass
class _Known:
    """A run in the store. latest: last value of each metric. logged: last step of each; None if not asked for yet."""

    id: str
    state: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    latest: Mapping[str, float] = field(default_factory=dict)
    logged: dict[str, int] | None = None


class Runs:
    """The runs of an experiment's folder in a store. Any method raises what MLflow raises.

    uri: from `store_uri`. folder: of the experiment.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        self._owner = _owner(folder)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "raypipe"
        found = self._client.get_experiment_by_name(name)
        artifacts = None if os.environ.get(URI) else (folder.resolve() / FOLDER / "artifacts").as_uri()
        self._experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        self._known = {run.data.tags[KEY]: _known(run) for run in self._search()}

    def _search(self) -> Iterator[Any]:
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{OWNER}` = '{self._owner}'", max_results=1000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def log(self, run: Run) -> None:
        """Make a run in the store what it should be; only what it lacks is sent. Its parent must be logged before."""
        known = self._known.get(run.key) or self._create(run)
        last = {name: values[-1][1] for name, values in run.metrics.items() if values}
        if known.state == run.state and known.latest == last:
            return
        self._log_params(known, run)
        self._log_metrics(known, run.metrics)
        if known.state != run.state:
            if run.state == "running":
                self._client.update_run(known.id, STATUS[run.state])
            else:
                self._client.set_terminated(known.id, STATUS[run.state])
            for name, value in {**run.tags, STATE: run.state}.items():
                self._client.set_tag(known.id, name, value[:LONGEST])
        known.state, known.latest = run.state, last

    def _create(self, run: Run) -> _Known:
        tags = {**run.tags, OWNER: self._owner, KEY: run.key}
        if run.parent is not None:
            tags[PARENT] = self._known[run.parent].id
        made = self._client.create_run(self._experiment, tags=tags, run_name=run.name)
        self._known[run.key] = _Known(made.info.run_id, logged={})
        return self._known[run.key]

    def _log_params(self, known: _Known, run: Run) -> None:
        from mlflow.entities import Param

        left = [Param(name, str(value)[:LONGEST]) for name, value in run.params.items() if name not in known.params]
        for at in range(0, len(left), PARAMS):
            self._client.log_batch(known.id, params=left[at : at + PARAMS])
        known.params = {**known.params, **{param.key: param.value for param in left}}

    def _log_metrics(self, known: _Known, metrics: Mapping[str, Sequence[tuple[int, float]]]) -> None:
        """Log the values after the last step that each metric has: a resumed training logs the same values again."""
        from mlflow.entities import Metric

        if known.logged is None:
            histories = {name: self._client.get_metric_history(known.id, name) for name in known.latest}
            known.logged = {name: max(each.step for each in history) for name, history in histories.items()}
        now = int(1000 * time.time())
        left = [
            Metric(name, value, now, step)
            for name, values in metrics.items()
            for step, value in values
            if step > known.logged.get(name, -1)
        ]
        for at in range(0, len(left), BATCH):
            self._client.log_batch(known.id, metrics=left[at : at + BATCH])
        for metric in left:
            known.logged[metric.key] = max(metric.step, known.logged.get(metric.key, -1))


def _known(run: Any) -> _Known:
    return _Known(run.info.run_id, run.data.tags.get(STATE), run.data.params, run.data.metrics)


def _owner(folder: Path) -> str:
    """What identifies an experiment's folder in a store, stored in it so that a resumed search finds its runs."""
    path = folder / "mlflow-id"
    if not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return path.read_text()
