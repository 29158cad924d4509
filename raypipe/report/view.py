"""Ask a search from Python, while it runs or at any time after that: `raypipe.open_search(folder)`."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from raypipe.common.errors import UserError, nearest
from raypipe.common.files import standing
from raypipe.common.places import to_place
from raypipe.config import Component, Experiment
from raypipe.report.overview import as_html, as_text
from raypipe.report.state import Overview, read_overview
from raypipe.search import records
from raypipe.search.configured import finalist_values, parse_refit_name, refit_config, trial_config
from raypipe.search.records import Row
from raypipe.training.monitor import METRICS
from raypipe.workspace import bucket
from raypipe.workspace.claims import LOCK, contents, latest
from raypipe.workspace.layout import Workspace

if TYPE_CHECKING:
    from raypipe.forecast.predictor import Predictor

COLUMNS: Mapping[str, pa.DataType] = MappingProxyType(
    {
        "stage": pa.string(),
        "trial": pa.string(),
        "status": pa.string(),
        "step": pa.int64(),
        "objective": pa.float64(),
        "objective_se": pa.float64(),
        "difference": pa.float64(),
        "difference_se": pa.float64(),
        "noise_std": pa.float64(),
        "loss": pa.string(),
        "learning_rate": pa.float64(),
        "time_input": pa.bool_(),
        "flow": pa.string(),
        "refit": pa.bool_(),
        "default": pa.bool_(),
        "magnitude": pa.float64(),
        "spread_skill": pa.float64(),
        "objective_by_step": pa.list_(pa.float64()),
        "nfe_per_frame": pa.int64(),
        "seconds": pa.float64(),
        "error": pa.string(),
        "values": pa.string(),
        "exploited": pa.string(),
    }
)
"""The columns of `SearchView.trials` and their types, also where no trial has a value."""


def open_search(folder: str | Path) -> "SearchView":
    """Open a search for reading: nothing is written to its folder, and no Ray is started.

    folder: that of an experiment, or a storage root, whose latest search is opened; a path, or a URI such as
    s3://bucket/storage/demo, from which each method copies what it reads. Raises UserError if it holds none.
    """
    place = to_place(str(folder))
    if not isinstance(place, Path):
        found = bucket.find_experiment(place)
        return SearchView(latest_search(bucket.open_storage(place)) if found is None else Workspace(*found))
    path = place.expanduser().resolve()
    if (path / "config.yaml").is_file():
        return SearchView(Workspace(path.parent, path.name))
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the folder of a search, or the storage root that holds it")
    return SearchView(latest_search(path))


def latest_search(storage: Path) -> Workspace:
    """The search of a storage root that began last. Raises UserError if there is none."""
    found = latest(storage, _is_search)
    if found is None:
        place = bucket.shown(storage)
        raise UserError(f"{place}: no search in this folder ({contents(storage)}); run experiments/pipeline.py first")
    return found


def _is_search(workspace: Workspace) -> bool:
    """Whether an experiment is a search, which may have no trial yet, and not only a training."""
    return any(path.is_file() for path in (workspace.study, workspace.trials, workspace.folder / LOCK))


class SearchView:
    """A search, read from its folder: every property and method reads the files as they are at that moment.

    Trials are named as in the tables, such as `flow-03`; finalists that are retrained, such as `flow-03-s0`, count as
    trials too.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        workspace.experiment()  # raises ConfigError if there is none

    @property
    def folder(self) -> Path:
        """The folder of the search; of one in a bucket, the local folder with what has been copied of it."""
        return self._workspace.folder

    @property
    def state(self) -> str:
        """`running`, `finished`, or `not running`: killed, interrupted, or with stages that nobody has searched yet."""
        return self._overview().state

    @property
    def trials(self) -> pa.Table:
        """The trials at their last rung, one row each, with the columns `COLUMNS`; of pandas: `.to_pandas()`.

        status: `finished`, `stopped` (by the scheduler), `failed`, `running`, or `interrupted` where nothing runs it.
        objective: the CRPS ratio, null before the first rung. refit: whether the row is of a retrained finalist.
        """
        return _table(self._overview().rows)

    def best(self, n: int = 5) -> pa.Table:
        """The n trials of all stages with the lowest objective, the best first: rows of `trials`.

        Raises UserError if n is below 1.
        """
        if n < 1:
            raise UserError(f"n: must be at least 1, not {n}")
        return _table(self._overview().best[:n])

    def curve(self, trial: str) -> pa.Table:
        """The objective of a trial at each rung so far: columns step, objective and objective_se.

        Raises UserError if there is no such trial.
        """
        row = self._row(trial)
        rows = [r for r in self._written() if (r["stage"], r["trial"]) == (row["stage"], trial)]
        rows.sort(key=lambda r: r["step"])
        return _table(rows, ("step", "objective", "objective_se"))

    def config(self, trial: str) -> Experiment:
        """The config of a trial; of one that pbt has changed, that of its last rung.

        Raises UserError if there is no such trial, or if an earlier version of raypipe began it and left no rung of it.
        """
        return self._config(self._row(trial))

    def predictor(self, trial: str) -> "Predictor":
        """The predictor that a trial makes by itself; `raypipe.load_predictor` loads that of the chosen combination.

        A flow predicts without noise, so that all members are equal; a joint network with the noise that was fitted for
        its score. Frames are decoded plainly. Raises UserError for a denoiser or a diffusion, which predict only with
        a flow, or if the trial has no model.
        """
        row = self._row(trial)
        if row["stage"] not in ("flow", "joint"):
            raise UserError(
                f"{trial}: a {row['stage']} makes no forecast without a flow; only flow and joint trials have a "
                f"predictor, and raypipe.load_predictor({str(self.folder)!r}) loads the chosen combination"
            )
        self._look(f"{row['stage']}/{trial}/", "autoencoder/")
        return _predictor(self._workspace, self._config(row), row)

    def report(self) -> Path:
        """Path of the report; of a search that has written none yet, one is made in a temporary folder.

        Raises UserError if a table of the search cannot be read.
        """
        self._look("evaluation/")
        written = self._workspace.evaluation / "report.html"
        if written.is_file():
            return written
        from raypipe.report.page import write_report  # imports torch and matplotlib

        return write_report(self._workspace, Path(tempfile.mkdtemp(prefix="raypipe-")) / "report.html")

    def __repr__(self) -> str:
        return as_text(self._overview())

    def _repr_html_(self) -> str:
        return as_html(self._overview())

    def _look(self, *names: str) -> None:
        bucket.look(self._workspace.storage, self._workspace.name, METRICS, *names)

    def _overview(self) -> Overview:
        self._look()
        return read_overview(self._workspace)

    def _written(self) -> list[Row]:
        return records.read_rows(self._workspace.trials)

    def _row(self, trial: str) -> Row:
        rows = {row["trial"]: row for row in self._overview().rows}
        if trial not in rows:
            more = nearest(trial, rows) or f"; the trials are {', '.join(rows) or 'still to come'}"
            raise UserError(f"{self.folder}: no trial {trial!r}{more}")
        return rows[trial]

    def _config(self, row: Row) -> Experiment:
        experiment, stage = self._workspace.experiment(), row["stage"]
        if row["values"] is None:
            raise UserError(f"{self.folder}: the config of {row['trial']} is not stored before its first rung")
        if not row["refit"]:
            return trial_config(experiment, stage, json.loads(row["values"]))
        name, seed = parse_refit_name(row["trial"])
        return refit_config(experiment, stage, finalist_values(self._workspace, stage, name) or {}, seed)


def _table(rows: Sequence[Row], names: Sequence[str] = ()) -> pa.Table:
    """A table of rows with these columns; by default with `COLUMNS`, and those that only the rows have."""
    columns = names or dict.fromkeys([*COLUMNS, *(name for row in rows for name in row)])
    return pa.table({name: pa.array([row.get(name) for row in rows], COLUMNS.get(name)) for name in columns})


def _predictor(workspace: Workspace, experiment: Experiment, row: Row) -> "Predictor":
    """The predictor of a flow or a joint network alone. experiment: the config of the trial."""
    from raypipe import checkpoint  # what is loaded here imports torch
    from raypipe.forecast.manifest import JOINT, Manifest
    from raypipe.forecast.predictor import Predictor

    component: Component = row["stage"]
    folder = workspace.run(component, row["trial"])
    if not (standing(folder) / "config.json").is_file():
        raise UserError(f"{folder}: no model of this trial: it has not saved one yet, or it has been deleted")
    joint, evaluation = component == "joint", experiment.evaluation
    manifest = Manifest(
        flow=row["trial"],
        alpha=1.0,
        beta=row["magnitude"] if joint and row["magnitude"] is not None else 1.0,
        steps=evaluation.steps[0],
        solver=evaluation.solvers[0],
        num_input_frames=experiment.model.num_input_frames,
        image_size=experiment.dataset.image_size,
        frame_stride=experiment.dataset.frame_stride,
        dataset=experiment.dataset.name,
        diffusion=JOINT if joint else None,
    )
    return Predictor(manifest, checkpoint.load_autoencoder(workspace.autoencoder), checkpoint.load_component(folder))
