"""What wandb keeps of a run that it records offline."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

from raypipe.training.monitor import log_folder
from tests.raytools import wait_for

BLOCK, HEADER = 32768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


@dataclass(frozen=True)
class Run:
    """loss, objective: as they were logged, by step."""

    id: str
    name: str
    group: str
    settings: dict[str, Any]
    loss: dict[int, float]
    objective: dict[int, float]


def read_runs(folder: Path) -> list[Run]:
    """The runs of a training, once they are over: wandb writes behind."""
    paths = sorted(log_folder(folder).glob("wandb/offline-run-*/run-*.wandb"))
    return [_read(path) for path in paths]


def _read(path: Path) -> Run:
    found = wait_for(lambda: [r for r in [list(_records(path.read_bytes()))] if r and r[-1].HasField("exit")], 30)[0]
    (run,) = [record.run for record in found if record.HasField("run")]
    logged = [
        {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    settings = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
    loss, objective = ({row["_step"]: row[key] for row in logged if key in row} for key in ("loss", "objective"))
    return Run(run.run_id, run.display_name, run.run_group, settings, loss, objective)


def _records(data: bytes) -> Iterator[Record]:
    """A file of LevelDB's log format: blocks of records, each after its checksum, size and kind; 7 bytes lead."""
    at, parts = 7, b""
    while at + HEADER.size <= len(data):
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = HEADER.unpack_from(data, at)
        parts += data[at + HEADER.size : at + HEADER.size + size]
        at += HEADER.size + size
        if kind in (WHOLE, LAST):
            yield Record.FromString(parts)
            parts = b""
