"""What a training writes while it runs: metrics.jsonl, TensorBoard events, and wandb where asked."""

import json
import logging
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raypipe.common.files import atomic_path

logger = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
WANDB_SECONDS = 10
"""How long a training waits for wandb's server before it records offline."""


@dataclass(frozen=True)
class Label:
    """How wandb shows a training: its group, `<experiment>/<stage>`, and its settings, to sort and filter by."""

    group: str
    settings: Mapping[str, Any]


class Monitor:
    """Rank 0's record of one training, beside the folder its model goes to (`<folder>.log/`).

    wandb: the training is logged there too, under this label.
    """

    def __init__(self, folder: Path, step: int, *, wandb: Label | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._folder = log_folder(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(folder) if row["step"] <= step]
        with atomic_path(self._folder / METRICS) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = (self._folder / METRICS).open("a")
        self._board = SummaryWriter(str(self._folder), purge_step=step + 1)  # purges that step too
        self._wandb = start_wandb(folder, wandb) if wandb is not None else None

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Append one row; it holds `step`."""
        self._file.write(json.dumps(dict(metrics)) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if name != "step":
                self._board.add_scalar(name, value, metrics["step"])
        if self._wandb is not None:
            self._wandb.log({k: v for k, v in metrics.items() if k != "step"}, step=metrics["step"])

    def score(self, step: int, objective: float) -> None:
        """What a trial is ranked by, at a rung."""
        self._board.add_scalar("objective", objective, step)
        if self._wandb is not None:
            self._wandb.log({"objective": objective}, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def start_wandb(folder: Path, label: Label) -> Any:
    """The training's wandb run, named after the folder: a new one, or the one it began with, which goes on.

    Offline if the server does not answer. Once it has not, this process does not wait for it again: that would cost
    every trial as much.
    """
    import wandb

    place: dict[str, Any] = {
        "project": "raypipe",
        "name": folder.name,
        "group": label.group,
        "config": dict(label.settings),
        "allow_val_change": True,  # population based training changes them on the way
        "id": _wandb_id(folder),
        "resume": None if os.environ.get("WANDB_MODE") == "offline" else "allow",  # offline, the id alone does it
        "dir": str(log_folder(folder)),
        "reinit": "finish_previous",
        "mode": os.environ.get("WANDB_MODE"),  # which wandb itself reads only once
        "settings": wandb.Settings(init_timeout=WANDB_SECONDS),
    }
    try:
        return wandb.init(**place)
    except wandb.errors.Error as error:
        logger.warning("wandb: %s; recording offline, `wandb sync` uploads it later", error)
        os.environ["WANDB_MODE"] = "offline"
        # wandb's service still holds the id, for the run that did not come about.
        return wandb.init(**place | {"mode": "offline", "resume": None, "id": _wandb_id(folder, fresh=True)})


def _wandb_id(folder: Path, fresh: bool = False) -> str:
    """Drawn once and kept beside the metrics, so that what goes on after a pause or a crash goes on there too.

    fresh: a new one takes its place.
    """
    path = log_folder(folder) / "wandb-id"
    if fresh or not path.is_file():
        with atomic_path(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return path.read_text()


def log_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows a training has written so far; a line that is still being written is left out."""
    path = log_folder(folder) / METRICS
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
