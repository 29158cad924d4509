"""Find the clips below a folder: videos, animated images, folders of frames, and what is in shards, tars and arrays."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.data.conversion.arrays import is_zarr, zarr_stamp
from raypipe.data.conversion.holders import HOLDERS, clips_in, holds_clips
from raypipe.data.conversion.preprocessing import RECORD
from raypipe.data.conversion.source import Found, Holder, Source, listed
from raypipe.data.conversion.tables import foreign_tables
from raypipe.data.shards import open_shards
from raypipe.data.shards.index import INDEX
from raypipe.data.shards.reference import MANIFEST
from raypipe.data.shards.writer import PATTERN
from raypipe.data.video.folders import frame_names, image_suffix, natural, readable
from raypipe.data.video.images import is_film, opened
from raypipe.data.video.kinds import IMAGE_SUFFIXES, PLAIN_IMAGES, Kind, kind_of

SERVICE_FOLDERS = frozenset(
    {"@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found", "system volume information"}
)
"""Folders that file systems and file servers create for themselves, such as for thumbnails; in lower case."""
SERVICE_FILES = frozenset({"thumbs.db", "desktop.ini"})
LOOKED_AT = 16
"""Files of one usual image format in one folder that are opened to learn their kind; of more files, only the first."""


def find_clips(folder: Path, extension: str | None = None, base: Path | None = None) -> Found:
    """Every clip below `folder`, at any depth, in natural order of the names, and what is there besides.

    extension: file extension of the images of a clip; None to detect it. base: folder that origins are relative to.
    An empty folder counts as a folder of frames: reading it then reports the problem. `folder` may also be a file of
    several clips. Raises UserError if it is neither.
    """
    if not holds_clips(folder):
        raise UserError(f"{folder}: no such folder")
    root = folder if folder.is_dir() else folder.parent
    search = _Search(root, base or root, None if extension is None else image_suffix(f"x.{extension.lstrip('.')}"))
    if root == folder:
        search.walk(folder, frozenset())
    else:
        search.add_holder(folder)
    search.drop_thumbnails()
    sources = sorted(search.sources, key=lambda source: natural(source.name))
    return Found(tuple(sources), tuple(search.bad), tuple(search.notes), tuple(search.ignored))


def source_of(path: Path) -> Source:
    """The source in a single file. Raises UserError if it is no video, animation or document of several pages."""
    kind = kind_of(str(path))
    stat = path.stat()
    stamp = 1, stat.st_size, stat.st_mtime_ns
    if kind == "video":
        return Source(path.name, path, "video", path.name, stamp)
    if kind == "film":
        return Source(path.name, path, "film", path.name, stamp)
    if kind == "image":
        raise UserError(f"{path}: a single image; give a video, an animation, or a folder with the images of a clip")
    raise UserError(_unreadable(path))


def is_shard_folder(folder: Path) -> bool:
    """Whether a folder holds shards."""
    return folder.is_dir() and ((folder / INDEX).is_file() or any(folder.glob(PATTERN)))


class _Search:
    def __init__(self, root: Path, base: Path, suffix: str | None) -> None:
        self.root, self.base, self.suffix = root, base, suffix
        self.sources: list[Source] = []
        self.bad: list[str] = []
        self.notes: list[str] = []
        self.ignored: list[str] = []

    def walk(self, folder: Path, above: frozenset[str]) -> None:
        """Take in a folder and all below it. above: real paths of the folders that led here, to notice links back."""
        if is_zarr(folder):
            self.add_holder(folder)
            return
        told, above = len(self.bad), above | {os.path.realpath(folder)}
        files, folders, others = self._list(folder, above)
        shards = [entry for entry in files if fnmatch(entry.name, PATTERN)]
        if shards:
            files = [e for e in files if e not in shards and e.name not in (INDEX, MANIFEST, RECORD)]
            self._add_shards(folder, shards)
        kinds = self._kinds(files)
        films = [e for e in files if kinds[e.name] in ("video", "film")]
        stills = [e for e in files if kinds[e.name] == "image"]
        others += [e.name for e in files if kinds[e.name] == "other"]
        holders = [e.name for e in files if kinds[e.name] in HOLDERS]
        foreign = foreign_tables(folder, holders)
        self._ignore(folder, foreign, "not among the files of the dataset that its state.json lists")
        for name in holders:
            if name not in foreign:
                self.add_holder(folder / name)
        self.bad += [_unreadable(Path(e.path)) for e in files if kinds[e.name] == "bad"]
        self._ignore(folder, others, "files that are no videos or images")
        for entry in films:
            path = Path(entry.path)
            kind = "video" if kinds[entry.name] == "video" else "film"
            self.sources.append(Source(self._name(path), path, kind, self._origin(path), _stamp([entry])))  # type: ignore[arg-type]
        alone = not (films or shards or holders or (folder == self.root and folders))
        if stills and not alone:
            beside = "videos" if films or holders else "shards" if shards else "folders of clips"
            self.bad.append(f"{folder}: {listed([e.name for e in stills])}: images beside {beside}, left out")
        elif stills or (alone and not folders and folder != self.root and len(self.bad) == told):
            self._add_frames(folder, stills)
        for entry in folders:
            self.walk(Path(entry.path), above)

    def _list(
        self, folder: Path, above: frozenset[str]
    ) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]], list[str]]:
        """Files, folders, and names of service files of a folder."""
        files, folders, others, hidden = [], [], [], []
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self.bad.append(f"{folder}: cannot be read ({error.strerror})")
            return [], [], []
        for entry in entries:
            try:
                problem = _problem(entry, above)
                is_folder = problem is None and entry.is_dir()
            except OSError as error:
                problem = f"cannot be read ({error.strerror})"
            if problem:
                self.bad.append(f"{readable(entry.path)}: {problem}")
            elif entry.name.startswith("."):
                hidden.append(entry.name)
            elif entry.name.lower() in SERVICE_FILES:
                others.append(entry.name)
            elif not is_folder:
                files.append(entry)
            elif entry.name.lower() in SERVICE_FOLDERS:
                self.ignored.append(f"{entry.path}: a folder that file servers make, with thumbnails")
            else:
                folders.append(entry)
        self._ignore(folder, hidden, "hidden, as the name begins with a dot")
        return files, folders, others

    def _kinds(self, files: Sequence[os.DirEntry[str]]) -> dict[str, Kind]:
        groups = defaultdict(list)
        for entry in files:
            groups[image_suffix(entry.name)].append(entry)
        kinds: dict[str, Kind] = {}
        for suffix, group in groups.items():
            if suffix == self.suffix:
                kinds |= dict.fromkeys((entry.name for entry in group), "image")
                continue
            first = kind_of(group[0].path)
            if suffix in PLAIN_IMAGES and len(group) > LOOKED_AT and first == "image":
                kinds |= dict.fromkeys((entry.name for entry in group), "image")
                continue
            found = {entry.name: kind_of(entry.path) for entry in group[1:]} | {group[0].name: first}
            # A damaged frame belongs to its clip, which is then left out whole.
            if suffix in PLAIN_IMAGES or "image" in found.values():
                found = {
                    name: "image" if kind == "bad" and suffix in IMAGE_SUFFIXES else kind
                    for name, kind in found.items()
                }
            kinds |= found
        if self.suffix is not None:
            images = [name for name, kind in kinds.items() if kind == "image" and image_suffix(name) != self.suffix]
            kinds |= dict.fromkeys(images, "other")
        return kinds

    def _add_frames(self, folder: Path, stills: Sequence[os.DirEntry[str]]) -> None:
        suffixes = sorted({image_suffix(entry.name) for entry in stills})
        if len(suffixes) > 1:
            self.bad.append(
                f"{folder}: contains {' and '.join(suffixes)} images, left out; choose one with --extension"
                f" {suffixes[0][1:]}"
            )
            return
        name = folder.resolve().name if folder == self.root else self._name(folder)
        if folder == self.root:
            self.notes.append(f"{folder}: its {len(stills)} images are taken for the frames of one clip")
        suffix = suffixes[0] if suffixes else self.suffix or ""
        self.sources.append(Source(name, folder, "frames", self._origin(folder), _stamp(stills), suffix))

    def _add_shards(self, folder: Path, files: Sequence[os.DirEntry[str]]) -> None:
        try:
            shards = open_shards(folder)
        except UserError as error:
            self.bad.append(str(error))
            return
        if shards.dtype != "uint8" or len(shards.frame_shape) != 3 or shards.frame_shape[-1] != 3:
            self.bad.append(
                f"{folder}: its shards hold frames of {shards.dtype} {list(shards.frame_shape)}, not uint8 [H, W, 3]"
            )
            return
        stamps = {entry.name: _stamp([entry]) for entry in files}
        prefix = "" if folder == self.root else f"{self._name(folder)}/"
        for i, name in enumerate(shards.names):
            path = Path(shards.path(i))
            origin = shards.sources[i] or self._origin(path)
            self.sources.append(Source(prefix + name, folder, "shards", origin, stamps[path.name], clip=i))

    def add_holder(self, path: Path) -> None:
        """Take in a file of several clips, or a zarr store."""
        stamp = zarr_stamp(path) if path.is_dir() else (1, path.stat().st_size, path.stat().st_mtime_ns)
        name = path.resolve().name if path == self.root else self._name(path)
        found = clips_in(Holder(path, name, name if path == self.base else self._origin(path), stamp))
        self.sources += found.sources
        self.bad += found.bad
        self.notes += found.notes
        self.ignored += found.ignored

    def drop_thumbnails(self) -> None:
        """Leave out folders whose images are all named like videos."""
        films = [Path(source.name) for source in self.sources if source.kind in ("video", "film")]
        named = {path.stem for path in films} | {path.name for path in films}
        for source in [s for s in self.sources if s.kind == "frames"] if named else []:
            names = frame_names(source.path, source.suffix)
            if names and all(os.path.splitext(name)[0] in named for name in names):
                self.sources.remove(source)
                self.bad.append(f"{source.path}: {listed(names)}: images named like videos, left out")

    def _ignore(self, folder: Path, names: Sequence[str], what: str) -> None:
        if names:
            self.ignored.append(f"{folder}: {listed(sorted(names))}: {what}")

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def _origin(self, path: Path) -> str:
        return path.relative_to(self.base).as_posix()


def _unreadable(path: Path) -> str:
    """Why neither FFmpeg nor Pillow reads a file."""
    if image_suffix(path.name) in IMAGE_SUFFIXES:
        try:
            with opened(path) as image:
                is_film(image)
        except UserError as error:
            return str(error)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    hint = "; shards must be named shard_*.hdf5" if path.suffix.lower() in (".hdf5", ".h5") else ""
    if path.suffix.lower() == ".tgz" or Path(path.stem).suffix.lower() == ".tar":
        hint = "; a compressed tar file is only read once it is decompressed"
    return f"{path}: neither FFmpeg nor Pillow finds a video or images in it{hint}"


def _problem(entry: os.DirEntry[str], above: frozenset[str]) -> str | None:
    """Why an entry of a folder cannot be a file or folder of clips; None if it can."""
    if readable(entry.name) != entry.name:
        return "its name is not UTF-8; rename it"
    if entry.is_symlink() and not os.path.exists(entry.path):
        return f"a link to {readable(os.readlink(entry.path))}, which does not exist"
    if entry.is_dir():
        target = os.path.realpath(entry.path)
        if entry.is_symlink() and any(f"{folder}/".startswith(f"{target}/") for folder in above):
            return "a link to a folder that contains it"
        return None
    return None if entry.is_file() else "neither a file nor a folder"


def without_repeats(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """The sources without duplicates, and one message for each duplicate left out.

    `a.mp4` is a duplicate of `a.avi`, and of a folder `a`: the first one in order is kept.
    """
    taken: dict[str, Source] = {}
    repeats = []
    for source in sources:
        first = taken.setdefault(source.identity, source)
        if first is not source:
            repeats.append(f"{source.place}: duplicate of {first.place} (same clip name); rename one of them")
    return list(taken.values()), repeats


def _stamp(entries: Iterable[os.DirEntry[str]]) -> tuple[int, int, int]:
    stats = [entry.stat() for entry in entries]
    return len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
