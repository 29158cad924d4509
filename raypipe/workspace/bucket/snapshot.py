"""The files of an experiment at one moment, while other processes write to its folder."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

BASE = ".stored.json"
"""File in an experiment's folder, which is not stored: the index of the bucket with which it agreed last."""
TRIES = 100
"""Number of times that a snapshot is tried while files change under it."""
SMALL = 2**20
"""Files of at most so many bytes are copied, since some programs write them in place; larger ones are linked."""


class UnsteadyError(OSError):
    """The files changed during every attempt to take a snapshot."""


@dataclass(frozen=True)
class File:
    """The content of a file: its SHA-256, size in bytes and modification time in ns."""

    sha256: str
    size: int
    mtime: int


@dataclass(frozen=True)
class Index:
    """The files of an experiment, by path relative to its folder. id: different for each index."""

    files: Mapping[str, File] = field(default_factory=dict)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def to_json(self) -> bytes:
        files = {path: [file.sha256, file.size, file.mtime] for path, file in sorted(self.files.items())}
        return json.dumps({"id": self.id, "files": files}).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Index:
        """The inverse of `to_json`. Raises ValueError for any other text, and for a path that leaves the folder."""
        try:
            content = json.loads(text)
            files = {str(path): File(*entry) for path, entry in content["files"].items()}
            found = cls(files, str(content["id"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an index: {error}") from None
        for path in found.files:
            if ".." in PurePosixPath(path).parts or PurePosixPath(path).is_absolute():
                raise ValueError(f"a file in it is named {path!r}")
        return found


@dataclass(frozen=True)
class Stamp:
    """What tells whether a file was written since. mtime: in ns."""

    inode: int
    size: int
    mtime: int

    def same_content(self, file: File | None) -> bool:
        return file is not None and (self.size, self.mtime) == (file.size, file.mtime)


def is_log(path: str) -> bool:
    """Whether a file only logs a training, which goes on without it; it may lag behind the others in a snapshot."""
    name = path.rpartition("/")[2]
    return name.endswith(".jsonl") or name.startswith("events.out.tfevents")


def listing(folder: Path) -> dict[str, Stamp]:
    """The files of an experiment, without locks, temporary files and what Ray Tune writes, which nothing reads."""
    found: dict[str, Stamp] = {}
    left = [(str(folder), "")]
    while left:
        place, prefix = left.pop()
        try:
            entries = list(os.scandir(place))
        except FileNotFoundError:  # it was replaced at this moment
            continue
        for entry in entries:
            path = prefix + entry.name
            if entry.name.endswith((".tmp", ".lock")) or path == "ray/tune" or path == BASE:
                continue
            try:
                if entry.is_dir(follow_symlinks=False):
                    left.append((entry.path, f"{path}/"))
                elif entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found[path] = Stamp(stat.st_ino, stat.st_size, stat.st_mtime_ns)
            except FileNotFoundError:
                continue
    return found


def changed(now: Mapping[str, Stamp], index: Index) -> bool:
    """Whether files other than logs differ from those of an index."""
    mine = {path for path in now if not is_log(path)}
    if mine != {path for path in index.files if not is_log(path)}:
        return True
    return any(not now[path].same_content(index.files[path]) for path in mine)


@dataclass(frozen=True)
class Snapshot:
    """The files of a folder at one moment. staged: copies or links of those that differ from the last index."""

    files: Mapping[str, Stamp]
    staged: Mapping[str, Path]


def take(folder: Path, last: Index, home: Path) -> Snapshot:
    """Take a snapshot. Two listings, before and after, must agree, so that it is what a kill would have left.

    home: folder for the staged files, on the same disk; its content is replaced. Raises UnsteadyError if files change
    all the time.
    """
    for _ in range(TRIES):
        before = listing(folder)
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        new = [path for path, stamp in before.items() if not stamp.same_content(last.files.get(path))]
        try:
            staged = {path: _stage(folder / path, home / str(n), before[path]) for n, path in enumerate(new)}
        except FileNotFoundError:
            continue
        if _steady(before) == _steady(listing(folder)):
            return Snapshot(before, staged)
        time.sleep(0.02)
    raise UnsteadyError(f"{folder}: its files change too often for a snapshot")


def _stage(source: Path, target: Path, stamp: Stamp) -> Path:
    if stamp.size > SMALL and not is_log(source.name) and source.name != "study.log":
        os.link(source, target)
    else:
        shutil.copyfile(source, target)
    return target


def _steady(files: Mapping[str, Stamp]) -> dict[str, Stamp]:
    return {path: stamp for path, stamp in files.items() if not is_log(path)}
