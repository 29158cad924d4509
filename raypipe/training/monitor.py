"""Logs of a training: metrics.jsonl, TensorBoard events and, if requested, wandb."""

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe.common.files import atomic_path

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
OBJECTIVE = "objective"
"""Name of the scores of a trial in TensorBoard."""
WANDB_SECONDS = 10
"""Time in seconds to wait for the wandb server before falling back to offline mode."""


@dataclass(frozen=True)
class Label:
    """How a training appears in wandb. group: `<experiment>/<stage>`. settings: the wandb config of the run."""

    group: str
    settings: Mapping[str, Any]


class Monitor:
    """Writes the logs of a training to `<folder>.log/`, next to its model folder. Only rank 0 has one.

    step: steps already done; log entries of later steps are dropped. wandb: also log to wandb, with this label. values:
    what a search has chosen for this training, for the HParams of TensorBoard.
    """

    def __init__(
        self, folder: Path, step: int, *, wandb: Label | None = None, values: Mapping[str, Any] | None = None
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = log_folder(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        with atomic_path(self._folder / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = (self._folder / METRICS).open("a")
        self._board = SummaryWriter(str(self._folder), purge_step=step + 1)  # drops the events from this step on
        if values is not None:
            self._board_values(values)
        self._wandb = start_wandb(folder, wandb) if wandb is not None else None

    def _board_values(self, values: Mapping[str, Any]) -> None:
        """Write the values as HParams of this run; `SummaryWriter.add_hparams` would begin another run."""
        from torch.utils.tensorboard.summary import hparams

        plain = {name: value if isinstance(value, bool | int | float) else str(value) for name, value in values.items()}
        experiment, start, _ = hparams(plain, {OBJECTIVE: 0.0})
        writer = self._board._get_file_writer()
        for summary in (experiment, start):
            writer.add_summary(summary)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append a row of metrics, which must contain `step`."""
        self._file.write(json.dumps(dict(metrics)) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if name != "step":
                self._board.add_scalar(name, value, metrics["step"])
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in metrics.items() if k != "step"}, step=metrics["step"])

    def score(self, step: int, objective: float) -> None:
        """Log the objective of a trial at a rung."""
        self._board.add_scalar(OBJECTIVE, objective, step)
        if self._wandb is not None:
            self._wandb.log({"objective": objective}, step=step)

    def close(self) -> None:
        """Close all logs."""
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def start_wandb(folder: Path, label: Label) -> Any:
    """Start the wandb run of a training, named after its folder, or continue it if the training resumes.

    If the server does not respond, this run and all later ones of the process are offline, so that not every trial
    waits for the server.
    """
    import wandb

    place: dict[str, Any] = {
        "project": "raypipe",
        "name": folder.name,
        "group": label.group,
        "config": dict(label.settings),
        "allow_val_change": True,  # population based training changes settings during a run
        "id": _wandb_id(folder),
        "resume": None
        if os.environ.get("WANDB_MODE") == "offline"
        else "allow",  # offline mode continues a run by its id
        "dir": str(log_folder(folder)),
        "reinit": "finish_previous",
        "mode": os.environ.get("WANDB_MODE"),  # wandb reads the variable only once
        "settings": wandb.Settings(init_timeout=WANDB_SECONDS),
    }
    try:
        return wandb.init(**place)
    except wandb.errors.Error as error:
        logger.warning("wandb: %s; recording offline, `wandb sync` uploads it later", error)
        os.environ["WANDB_MODE"] = "offline"
        # The wandb service has reserved the id for the run that failed to start.
        return wandb.init(**place | {"mode": "offline", "resume": None, "id": _wandb_id(folder, fresh=True)})


def _wandb_id(folder: Path, fresh: bool = False) -> str:
    """The id of a training's wandb run, stored with the logs so that a resumed training continues the run.

    fresh: replace it by a new id.
    """
    path = log_folder(folder) / "wandb-id"
    if fresh or not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return path.read_text()


def log_folder(folder: Path) -> Path:
    """Folder for the logs of the training with this model folder."""
    return folder.with_name(f"{folder.name}.log")


def training_seconds(folders: Sequence[Path]) -> float | None:
    """Time of the training steps of these models; None if there are none, or if the logs of one do not tell it."""
    logged = [read_metrics(folder) for folder in folders]
    if not all(rows and all("seconds" in row for row in rows) for rows in logged) or not logged:
        return None
    return sum(float(row["seconds"]) for rows in logged for row in rows)


def steps_per_second(rows: Sequence[Mapping[str, Any]]) -> float:
    """Speed of a training at the last of its rows of metrics.jsonl; 0 without a row, or if it does not tell it."""
    last, before = rows[-1:], rows[-2:-1]
    if not last or not last[0].get("seconds"):
        return 0.0
    steps: int = last[0]["step"] - (before[0]["step"] if before else 0)
    return steps / float(last[0]["seconds"])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; an incomplete last line is ignored."""
    path = log_folder(folder) / METRICS
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
