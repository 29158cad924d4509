"""Which clips there are: video files, folders of frames, and clips of shards, told apart by looking."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Literal

from raypipe.common.errors import UserError
from raypipe.data.shards import open_shards
from raypipe.data.shards.writer import PATTERN
from raypipe.data.video.io import VIDEO_SUFFIXES, natural

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class Source:
    """One clip to be.

    name: its path below its split, unique there. path: of the video, the folder of frames, or the folder of
    shards. origin: what the manifest says it was made from. stamp: number of files, their bytes and the newest
    time of change in ns, by which a changed source is noticed. suffix: of the frames. clip: its number among
    those of the shards.
    """

    name: str
    path: Path
    kind: Literal["video", "frames", "shards"]
    origin: str
    stamp: tuple[int, int, int]
    suffix: str = ""
    clip: int = 0

    @property
    def identity(self) -> str:
        """What two sources of one clip have in common: the name without a video's suffix."""
        return PurePosixPath(self.name).with_suffix("").as_posix() if self.kind == "video" else self.name


def find_clips(folder: Path, extension: str | None = None, base: Path | None = None) -> list[Source]:
    """Every clip under `folder`, at any depth, in natural order of the names.

    extension: the suffix of images; None for the one that is there. base: what origins are relative to. A folder
    without anything in it that is known counts as a folder of frames, so that reading it says what is wrong with
    it. Raises ValueError if `folder` is missing, nothing is found, or a folder holds images of two suffixes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    suffixes = IMAGE_SUFFIXES if extension is None else frozenset({f".{extension.lstrip('.').lower()}"})
    sources = list(_walk(folder, folder, base or folder, suffixes))
    if not sources:
        wanted = "images" if extension is None else f"{min(suffixes)} images"
        raise UserError(
            f"{folder}: no clips found; it must hold video files ({', '.join(sorted(VIDEO_SUFFIXES))}),"
            f" one folder of {wanted} for each clip, or shards"
        )
    return sorted(sources, key=lambda source: natural(source.name))


def _walk(folder: Path, root: Path, base: Path, suffixes: frozenset[str]) -> Iterator[Source]:
    with os.scandir(folder) as entries:
        seen = [entry for entry in entries if not entry.name.startswith(".")]
    folders = [entry for entry in seen if entry.is_dir()]
    files = [entry for entry in seen if entry.is_file()]
    videos = [entry for entry in files if _suffix(entry.name) in VIDEO_SUFFIXES - suffixes]
    images = [entry for entry in files if _suffix(entry.name) in suffixes]
    shards = [entry for entry in files if fnmatch(entry.name, PATTERN)]
    found = sorted({_suffix(entry.name) for entry in images})
    if shards:
        yield from _clips_of_shards(folder, root, base, shards)
    elif folder != root and (images or not (videos or folders)):
        if len(found) > 1:
            raise UserError(
                f"{folder}: holds {' and '.join(found)} images; choose one of them with --extension {found[0][1:]}"
            )
        suffix = found[0] if found else min(suffixes) if len(suffixes) == 1 else ""
        yield Source(_below(folder, root), folder, "frames", _below(folder, base), _stamp(images), suffix)
    for entry in videos:
        path = Path(entry.path)
        yield Source(_below(path, root), path, "video", _below(path, base), _stamp([entry]))
    for entry in folders:
        yield from _walk(Path(entry.path), root, base, suffixes)


def _clips_of_shards(folder: Path, root: Path, base: Path, files: Sequence[os.DirEntry[str]]) -> Iterator[Source]:
    shards = open_shards(folder)
    if shards.dtype != "uint8" or len(shards.frame_shape) != 3 or shards.frame_shape[-1] != 3:
        raise UserError(f"{folder}: its shards hold {shards.dtype} {list(shards.frame_shape)}, not uint8 [H, W, 3]")
    stamps = {entry.name: _stamp([entry]) for entry in files}
    prefix = "" if folder == root else f"{_below(folder, root)}/"
    for i, name in enumerate(shards.names):
        path = Path(shards.path(i))
        origin = shards.sources[i] or _below(path, base)
        yield Source(prefix + name, folder, "shards", origin, stamps[path.name], clip=i)


def without_repeats(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """Sources of which no two are one clip, and the reasons why others were left out.

    `a.mp4` beside `a.avi`, or beside a folder `a`, is the same clip twice: the first in order is taken.
    """
    taken: dict[str, Source] = {}
    repeats = []
    for source in sources:
        first = taken.setdefault(source.identity, source)
        if first is not source:
            repeats.append(f"{source.path}: is called as {first.path}, which was taken; rename one of them")
    return list(taken.values()), repeats


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _stamp(entries: Sequence[os.DirEntry[str]]) -> tuple[int, int, int]:
    stats = [entry.stat() for entry in entries]
    return len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
