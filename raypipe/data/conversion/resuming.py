"""The state of a split that is being converted, kept in its folder.

`.shard_0001.json` beside a shard says of which sources, with which options it was made, and what was left out;
it is written after the shard. `conversion.json` holds the same of all shards once they stand. A shard is kept if
its record fits; any other is made anew, so a run that was cut off goes on where it was.
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
from raypipe.data.conversion.shard import Options, Outcome, Task, convert_shard
from raypipe.data.shards.reference import MANIFEST, write_manifest
from raypipe.data.shards.writer import INDEX, PATTERN, write_index

RECORD = "conversion.json"


@dataclass(frozen=True)
class State:
    """What stands of a split. done: outcomes by shard name. left: tasks. finished: nothing is left, the manifest
    neither."""

    done: dict[str, Outcome]
    left: tuple[Task, ...]
    finished: bool


def look(folder: Path, tasks: Sequence[Task]) -> State:
    """What stands in the folder of a split; changes nothing.

    Raises ValueError if it holds something else, was begun with other options, or is finished and its sources
    have changed since.
    """
    index = folder / _index_name(tasks[0].options)
    record = _read(folder / RECORD)
    if record is None:
        foreign = [path for path in (folder / INDEX, folder / MANIFEST, *folder.glob(PATTERN)) if path.exists()]
        if foreign:
            raise UserError(f"{foreign[0]}: not made by this command; delete {folder} or choose another --out_dir")
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


def begin(folder: Path, tasks: Sequence[Task], state: State) -> None:
    """Clear away what a killed run left and what no longer fits, and say with which options the folder is begun."""
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
    """Make a shard and its record; this is what runs in the processes of a conversion."""
    outcome = convert_shard(task, progress)
    _write(_record_of(task), {"plan": _digest(task), "outcome": asdict(outcome)})
    return outcome


def finish(folder: Path, tasks: Sequence[Task], done: dict[str, Outcome]) -> None:
    """Write the manifest, or, if no clip is left, remove the folder."""
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
    """Remove the temporary files of processes that were stopped."""
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
    """Of the sources and options of a shard; its place in the folder and the folder's on the disk play no part."""
    sources = [[s.name, s.kind, s.origin, s.suffix, s.clip, *s.stamp] for s in task.sources]
    return hashlib.sha256(json.dumps([asdict(task.options), sources]).encode()).hexdigest()[:16]


def _outcome(entry: dict[str, Any]) -> Outcome:
    lines = {name: tuple(entry[name]) for name in ("rows", "bad", "short", "notes")}
    return Outcome(bytes=entry["bytes"], **lines)


def _check_options(folder: Path, old: dict[str, Any], new: Options) -> None:
    differing = [name for name, value in asdict(new).items() if old.get(name) != value]
    if differing:
        changes = ", ".join(f"--{n.replace('_', '-')} {old.get(n)} (now {getattr(new, n)})" for n in differing)
        raise UserError(f"{folder}: begun with {changes}; give the same, delete it or choose another --out_dir")


def _check_sources(folder: Path, index: Path, old: dict[str, Any], tasks: Sequence[Task]) -> None:
    new = _sources(tasks)
    if new == old:
        return
    gone, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    changed = sorted(name for name in old.keys() & new.keys() if old[name] != new[name])
    parts = [f"{len(names)} {word}" for names, word in ((added, "new"), (changed, "changed"), (gone, "gone")) if names]
    example = [*added, *changed, *gone][0]
    raise UserError(
        f"{folder}: finished, but its sources differ now ({', '.join(parts)}, {example} among them); delete"
        f" {index.name} there to bring it up to date, or choose another --out_dir"
    )


def _write_record(folder: Path, tasks: Sequence[Task], done: dict[str, Outcome]) -> None:
    digests = {task.path.name: _digest(task) for task in tasks}
    shards = {name: {"plan": digests[name], "outcome": asdict(done[name])} for name in sorted(done)}
    record = {"options": asdict(tasks[0].options), "sources": _sources(tasks), "shards": shards}
    _write(folder / RECORD, record)


def _write(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))


def _read(path: Path) -> dict[str, Any] | None:
    """The content, or None if it is not there."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        raise UserError(f"{path}: damaged; delete {path.parent} and run the same again") from None
    return content
