"""State of the conversion of one split, stored in the split's folder, from which an interrupted run resumes.

The record `.shard_0001.json` is written after the shard of the same name. It holds a digest of the shard's sources and
options, and which sources were left out. `conversion.json` holds the options and, once the split is finished, the
records of all its shards. A shard with a matching record is kept; all others are written again. It also says how the
frames were made from the original videos (`Preprocessing`): shards that are converted again have a record of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raypipe.common.errors import UserError
from raypipe.common.files import atomic_path
from raypipe.data.conversion.preprocessing import (
    RECORD,
    Preprocessing,
    check_strides,
    every,
    from_options,
    read_preprocessing,
)
from raypipe.data.conversion.shard import Options, Outcome, Task, convert_shard
from raypipe.data.shards.reference import MANIFEST, write_manifest
from raypipe.data.shards.writer import INDEX, PATTERN, write_index


@dataclass(frozen=True)
class State:
    """Progress of a split. done: outcomes of the finished shards, by shard name. left: tasks still to do. finished:
    all shards and the manifest are written."""

    done: dict[str, Outcome]
    left: tuple[Task, ...]
    finished: bool


def look(folder: Path, tasks: Sequence[Task]) -> State:
    """Read the state of a split from its folder; changes nothing on disk.

    Raises UserError if the folder holds shards of another program, was begun with other options, or is finished and
    its sources have changed since; or if the sources are shards that were already converted with the same stride.
    """
    preprocessing_of(tasks)
    index = folder / _index_name(tasks[0].options)
    record = _read(folder / RECORD)
    if record is None:
        foreign = [path for path in (folder / INDEX, folder / MANIFEST, *folder.glob(PATTERN)) if path.exists()]
        if foreign:
            raise UserError(f"{foreign[0]}: not written by this command; delete {folder} or choose another --out_dir")
        return State({}, tuple(tasks), finished=False)
    _check_options(folder, record["options"], tasks[0].options)
    shards: dict[str, Any] = record["shards"]
    if index.is_file():
        _check_sources(folder, index, record["sources"], tasks)
    done = {}
    for task in tasks:
        entry = shards.get(task.path.name) or _read(_record_of(task))
        if entry is not None and entry["plan"] == _digest(task) and _stands(task, entry["outcome"]["bytes"]):
            done[task.path.name] = _outcome(entry["outcome"])
    left = tuple(task for task in tasks if task.path.name not in done)
    return State(done, left, finished=not left and index.is_file())


def preprocessing_of(tasks: Sequence[Task]) -> Preprocessing:
    """How the frames of a split are made from the original videos, through the conversion of source shards, if any.

    If the sources differ, the first one that says so counts. Raises UserError for a stride that is given twice.
    """
    now = from_options(asdict(tasks[0].options))
    folders = dict.fromkeys(s.path for task in tasks for s in task.sources if s.kind == "shards")
    earlier = [found for folder in folders if (found := read_preprocessing(folder)) is not None]
    for before in earlier:
        stride = before.frame_stride
        check_strides(
            stride,
            now.frame_stride,
            "--frame-stride",
            f"omit it for {every(stride)}, or convert the videos themselves with --frame-stride {stride**2}",
        )
    return earlier[0].then(now) if earlier else now


def begin(folder: Path, tasks: Sequence[Task], state: State) -> None:
    """Remove leftovers of a killed run and outdated shards, and write the options to `conversion.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (INDEX, MANIFEST):
        (folder / name).unlink(missing_ok=True)
    clean(folder)
    _write_record(folder, tasks, state.done)
    for pattern, suffix in ((PATTERN, ".hdf5"), (".shard_*.json", ".json")):
        for path in folder.glob(pattern):
            if path.name.removeprefix(".").removesuffix(suffix) + ".hdf5" not in state.done:
                path.unlink()


def make(task: Task, progress: Callable[[int], None] = lambda frames: None) -> Outcome:
    """Write a shard and its record. The workers of a conversion run this function."""
    outcome = convert_shard(task, progress)
    _write(_record_of(task), {"plan": _digest(task), "outcome": asdict(outcome)})
    return outcome


def finish(folder: Path, tasks: Sequence[Task], done: dict[str, Outcome]) -> None:
    """Write the manifest of a split and remove the records of its shards; without any clip, remove the folder."""
    rows = [
        {"shard": name, "group": group, **row}
        for name, outcome in sorted(done.items())
        for group, row in enumerate(outcome.rows)
    ]
    if rows:
        _write_record(folder, tasks, done)
        if tasks[0].options.layout == "packed":
            write_index(folder)
        else:
            write_manifest(folder, rows)
    for task in tasks:
        _record_of(task).unlink(missing_ok=True)
    if not rows:
        (folder / RECORD).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def clean(folder: Path) -> None:
    """Remove the temporary files of stopped processes."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _index_name(options: Options) -> str:
    return INDEX if options.layout == "packed" else MANIFEST


def _record_of(task: Task) -> Path:
    return task.path.with_name(f".{task.path.stem}.json")


def _stands(task: Task, size: int) -> bool:
    return size == 0 or (task.path.is_file() and task.path.stat().st_size == size)


def _sources(tasks: Sequence[Task]) -> dict[str, list[Any]]:
    return {s.name: [s.kind, s.suffix, *s.stamp] for task in tasks for s in task.sources}


def _digest(task: Task) -> str:
    """Digest of a shard's sources and options, independent of the shard's name and of where the folders are."""
    sources = [[s.name, s.kind, s.origin, s.suffix, s.clip, *s.stamp] for s in task.sources]
    options = {name: value for name, value in asdict(task.options).items() if value is not None}
    return hashlib.sha256(json.dumps([options, sources]).encode()).hexdigest()[:16]


def _outcome(entry: dict[str, Any]) -> Outcome:
    lines = {name: tuple(entry[name]) for name in ("rows", "bad", "short", "notes")}
    return Outcome(bytes=entry["bytes"], **lines)


def _check_options(folder: Path, old: dict[str, Any], new: Options) -> None:
    differing = [name for name, value in asdict(new).items() if old.get(name) != value]
    if differing:
        changes = ", ".join(f"--{n.replace('_', '-')} {old.get(n)} (now {getattr(new, n)})" for n in differing)
        raise UserError(f"{folder}: begun with {changes}; use the same options, delete it or choose another --out_dir")


def _check_sources(folder: Path, index: Path, old: dict[str, Any], tasks: Sequence[Task]) -> None:
    new = _sources(tasks)
    if new == old:
        return
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    parts = [f"{len(names)} {word}" for names, word in ((added, "new"), (changed, "changed"), (gone, "gone")) if names]
    example = [*added, *changed, *gone][0]
    raise UserError(
        f"{folder}: finished, but its sources have changed ({', '.join(parts)}, for example {example}); delete"
        f" {index.name} there to update it, or choose another --out_dir"
    )


def _write_record(folder: Path, tasks: Sequence[Task], done: dict[str, Outcome]) -> None:
    digests = {task.path.name: _digest(task) for task in tasks}
    shards = {name: {"plan": digests[name], "outcome": asdict(done[name])} for name in sorted(done)}
    prepared = asdict(preprocessing_of(tasks))
    record = {
        "options": asdict(tasks[0].options),
        "preprocessing": prepared,
        "sources": _sources(tasks),
        "shards": shards,
    }
    _write(folder / RECORD, record)


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file, or None if the file does not exist."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: damaged; delete {path.parent} and run the same command again") from None
    return content
