"""Find the clips below a folder: video files, folders of frames, and the clips of existing shards."""

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
    """The source of one clip.

    name: clip name, its path relative to the split, unique there. path: the video file, the folder of frames, or the
    folder of shards. origin: the clip's source as written to the manifest. stamp: number of files, their total bytes
    and newest modification time in ns, to detect a changed source. suffix: file extension of the frames. clip: index
    of the clip in the shards.
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
        """Key by which duplicates are found: the name, without the file extension for a video."""
        return PurePosixPath(self.name).with_suffix("").as_posix() if self.kind == "video" else self.name


def find_clips(folder: Path, extension: str | None = None, base: Path | None = None) -> list[Source]:
    """Every clip below `folder`, at any depth, in natural order of the names.

    extension: file extension of the images; None to detect it. base: folder that origins are relative to. An empty
    folder, or one with only unknown files, counts as a folder of frames: reading it then reports the problem. Raises
    UserError if `folder` does not exist, no clip is found, or a folder holds images with two file extensions.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    suffixes = IMAGE_SUFFIXES if extension is None else frozenset({f".{extension.lstrip('.').lower()}"})
    sources = list(_walk(folder, folder, base or folder, suffixes))
    if not sources:
        wanted = "images" if extension is None else f"{min(suffixes)} images"
        raise UserError(
            f"{folder}: no clips found; it must contain video files ({', '.join(sorted(VIDEO_SUFFIXES))}),"
            f" one folder of {wanted} per clip, or shards"
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
                f"{folder}: contains {' and '.join(found)} images; choose one with --extension {found[0][1:]}"
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
        raise UserError(
            f"{folder}: its shards hold frames of {shards.dtype} {list(shards.frame_shape)}, not uint8 [H, W, 3]"
        )
    stamps = {entry.name: _stamp([entry]) for entry in files}
    prefix = "" if folder == root else f"{_below(folder, root)}/"
    for i, name in enumerate(shards.names):
        path = Path(shards.path(i))
        origin = shards.sources[i] or _below(path, base)
        yield Source(prefix + name, folder, "shards", origin, stamps[path.name], clip=i)


def without_repeats(sources: Sequence[Source]) -> tuple[list[Source], list[str]]:
    """The sources without duplicates, and one message for each duplicate left out.

    `a.mp4` is a duplicate of `a.avi`, and of a folder `a`: the first one in order is kept.
    """
    taken: dict[str, Source] = {}
    repeats = []
    for source in sources:
        first = taken.setdefault(source.identity, source)
        if first is not source:
            repeats.append(f"{source.path}: duplicate of {first.path} (same clip name); rename one of them")
    return list(taken.values()), repeats


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _stamp(entries: Sequence[os.DirEntry[str]]) -> tuple[int, int, int]:
    stats = [entry.stat() for entry in entries]
    return len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
