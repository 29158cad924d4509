"""An experiment in a bucket, and its local folder: fetch it, and store what has changed.

In the bucket, `<name>/.raypipe/files/` holds the content of each file under its SHA-256, and
`<name>/.raypipe/index.json` names all files. The index is written last, so the bucket always shows the experiment as it
was at one moment. Copies of the results, such as `<name>/best/` and `<name>/evaluation/report.html`, lie beside it for
whoever reads the bucket.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.common.files import atomic_path, sha256, write_atomic
from raypipe.data.remote import in_threads
from raypipe.data.shards.connection import MissingFolderError
from raypipe.data.shards.storage import RemoteFolder
from raypipe.workspace.bucket import snapshot
from raypipe.workspace.bucket.snapshot import BASE, File, Index, Snapshot

INDEX, FILES, COPIED = ".raypipe/index.json", ".raypipe/files", ".raypipe/copied.json"
COPIES = ("config.yaml", "manifest.json", "trials.parquet", "report.html", "best/", "evaluation/", "samples/")
"""Files and folders of which the bucket has plain copies."""
BEST = "best/manifest.json"
"""The file that makes `best/` a predictor; its copy is written last."""
OVERVIEW = (
    "config.yaml", "manifest.json", "study.log", "trials.parquet", "finalists.json", "importances.json",
    "ceiling.json", "combinations.parquet", "report.html",
)  # fmt: skip
"""Names of the files that tell how far a search is."""
ROUNDS = 3
"""Number of times that an experiment is fetched anew because another machine stores it at the same time."""

logger = logging.getLogger(__name__)


class Mirror:
    """An experiment in a bucket. remote: its folder there. folder: its local folder. home: for temporary files.

    Only the machine that holds the lock may `fetch` and `store`; any other may `look`.
    """

    def __init__(self, remote: RemoteFolder, folder: Path, home: Path) -> None:
        self.remote, self.folder = remote, folder
        self._home = home
        self._last = Index()
        self._contents: dict[str, int] = {}
        self._copied: dict[str, str] | None = None
        self._interrupted = False

    def fetch(self) -> None:
        """Make the local folder equal to the bucket, unless it holds what this machine has not stored yet.

        Raises UserError if something cannot be read or is damaged.
        """
        index = self._read_index()
        if index is not None:
            if index.id not in self._bases():
                self._copy_here(index.files)
                self._remove(set(snapshot.listing(self.folder)) - set(index.files))
                self._write_bases(index.id)
            self._last = index
        found = (self.remote / FILES).files_or_none() or {}
        self._contents = {name: file.size for name, file in found.items()}

    def look(self, names: Iterable[str] = OVERVIEW) -> None:
        """Copy files with these names to the local folder, or those of `best/` for the name `best/`."""
        for attempt in range(ROUNDS):
            index = self._read_index()
            if index is None or index.id in self._bases():
                return
            wanted = {path: file for path, file in index.files.items() if _is_named(path, names)}
            try:
                self._copy_here(wanted)
            except MissingFolderError:  # stored anew at this moment
                if attempt == ROUNDS - 1:
                    raise
                continue
            self._remove({path for path in snapshot.listing(self.folder) if _is_named(path, names)} - set(wanted))
            return

    def changed(self) -> bool:
        """Whether the local folder has changed since it was stored, apart from logs."""
        return self._interrupted or snapshot.changed(snapshot.listing(self.folder), self._last)

    def store(self, check: Callable[[], None]) -> None:
        """Store what has changed in the local folder. check: called before the bucket shows it; may raise.

        Contents that are there already, such as those of an interrupted call, are not written again. Raises UserError
        or OSError if something cannot be stored; the next call continues.
        """
        self._interrupted = True
        try:
            self._store(snapshot.take(self.folder, self._last, self._home), check)
        finally:
            shutil.rmtree(self._home, ignore_errors=True)
        self._interrupted = False

    def _store(self, taken: Snapshot, check: Callable[[], None]) -> None:
        hashed = {
            path: File(sha256(place), place.stat().st_size, taken.files[path].mtime)
            for path, place in taken.staged.items()
        }
        new = {file.sha256: (taken.staged[path], file.size) for path, file in hashed.items()}
        left = [(key, path) for key, (path, size) in new.items() if self._contents.get(key) != size]
        in_threads([partial(self._store_content, key, path) for key, path in left])
        files = {path: hashed[path] if path in hashed else self._last.files[path] for path in taken.files}
        check()
        if files != self._last.files:
            index = Index(files)
            self._write_bases(self._last.id, index.id)  # whether or not the next line is reached
            self.remote.write(INDEX, index.to_json())
            self._last = index
            self._write_bases(index.id)
        self._write_copies(taken.staged)
        kept = {file.sha256 for file in files.values()}
        in_threads([partial(self._drop, key) for key in set(self._contents) - kept])

    def _store_content(self, key: str, path: Path) -> None:
        name = f"{FILES}/{key}"
        self.remote.write(name, path)
        if sha256(path) != key:
            self.remote.delete(name)
            raise snapshot.UnsteadyError(f"{self.folder}: a file changed while it was stored")
        self._contents[key] = path.stat().st_size

    def _drop(self, key: str) -> None:
        self.remote.delete(f"{FILES}/{key}")
        self._contents.pop(key, None)

    def _write_copies(self, staged: Mapping[str, Path]) -> None:
        """Bring the plain copies up to date. staged: files of the index that no other process writes to."""
        if self._copied is None:
            self._copied = self._read_copied()
        wanted = {path: file.sha256 for path, file in self._last.files.items() if path.startswith(COPIES)}
        have = self._copied
        left = {path for path in wanted if have.get(path) != wanted[path]}
        gone = {path for path in have if path not in wanted}
        if any(path.startswith("best/") for path in left | gone):
            left |= {BEST} & set(wanted)
            gone |= {BEST} & set(have)
        if not left and not gone:
            return
        places = {path: staged.get(path, self.folder / path) for path in left}
        for path, place in places.items():
            if path not in staged and (not place.is_file() or sha256(place) != wanted[path]):
                raise snapshot.UnsteadyError(f"{place}: changed while it was stored")
        # First without what is about to change, so that an interrupted call does not leave it as it is.
        self._copied = {path: key for path, key in have.items() if path not in left | gone}
        self._write_copied()
        in_threads([partial(self.remote.delete, path) for path in gone])
        in_threads([partial(self.remote.write, path, place) for path, place in places.items() if path != BEST])
        if BEST in left:
            self.remote.write(BEST, places[BEST])
        self._copied = wanted
        self._write_copied()

    def _read_copied(self) -> dict[str, str]:
        uri = f"{self.remote}/{COPIED}"
        try:
            return dict(json.loads(self.remote.retry(uri, lambda: b"".join(self.remote.read(COPIED)))))
        except (MissingFolderError, json.JSONDecodeError):
            return {}

    def _write_copied(self) -> None:
        self.remote.write(COPIED, json.dumps(self._copied).encode())

    def _read_index(self) -> Index | None:
        def read() -> Index:
            # It is also torn if it is replaced between the request for its size and that for its bytes.
            try:
                return Index.from_json(b"".join(self.remote.read(INDEX)))
            except ValueError as error:
                raise OSError(f"it is damaged: {error}") from None

        try:
            found: Index = self.remote.retry(f"{self.remote}/{INDEX}", read)
            return found
        except MissingFolderError:
            return None

    def _bases(self) -> list[str]:
        """The ids of the indexes, one of which the local folder is based on: it is as new as the bucket, or newer."""
        path = self.folder / BASE
        return list(json.loads(path.read_text())) if path.is_file() else []

    def _write_bases(self, *ids: str) -> None:
        write_atomic(self.folder / BASE, json.dumps(ids))

    def _copy_here(self, files: Mapping[str, File]) -> None:
        now = snapshot.listing(self.folder)
        left = {p: f for p, f in files.items() if p not in now or not now[p].same_content(f)}
        size = sum(file.size for file in left.values())
        if size > 2**20:
            logger.info("%s: copying %d files (%.3g MB) to %s", self.remote, len(left), size / 1e6, self.folder)
        in_threads([partial(self._copy, path, file) for path, file in left.items()])

    def _copy(self, path: str, file: File) -> None:
        target = self.folder / path
        try:
            with atomic_path(target) as temporary:
                uri = f"{self.remote}/{FILES}/{file.sha256}"
                self.remote.retry(uri, lambda: self._receive(temporary, file))
                os.utime(temporary, ns=(file.mtime, file.mtime))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{target}: no space left for a copy of {self.remote}; make room there") from None

    def _receive(self, temporary: Path, file: File) -> None:
        digest = hashlib.sha256()
        with temporary.open("wb") as out:
            for piece in self.remote.read(f"{FILES}/{file.sha256}"):
                digest.update(piece)
                out.write(piece)
        if digest.hexdigest() != file.sha256:
            raise OSError("what was received is damaged")

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            (self.folder / path).unlink(missing_ok=True)
            for parent in (self.folder / path).parents:
                if parent == self.folder or any(parent.iterdir()):
                    break
                parent.rmdir()


def _is_named(path: str, names: Iterable[str]) -> bool:
    return not path.startswith("ray/") and any(
        path.startswith(name) if name.endswith("/") else path.rpartition("/")[2] == name for name in names
    )
