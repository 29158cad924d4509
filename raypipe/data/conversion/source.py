"""The source of one clip."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

SHOWN = 3
"""Names of one file extension that a message lists."""


@dataclass(frozen=True)
class Source:
    """The source of one clip.

    name: clip name, its path relative to the split, unique there. path: the video file, the animated or multi-page
    image file (`film`), the folder of frames, the folder of shards, or the file or zarr store that holds several clips:
    a tar (`member`), arrays (`array`, `zarr`), a table (`row`). origin: the clip's source as written to the manifest.
    stamp: number of files, their total bytes and newest modification time in ns, to detect a changed source. suffix:
    `image_suffix` of the frames. clip: index of the clip in the shards, the array or the table. member: name of the
    clip in the file, for messages. at: first byte and number of bytes of a member of a tar.
    """

    name: str
    path: Path
    kind: Literal["video", "film", "frames", "shards", "member", "array", "zarr", "row"]
    origin: str
    stamp: tuple[int, int, int]
    suffix: str = ""
    clip: int = 0
    member: str = ""
    at: tuple[int, int] = (0, 0)

    @property
    def identity(self) -> str:
        """Key by which duplicates are found: the name, without the file extension for a file."""
        is_file = self.kind in ("video", "film")
        return PurePosixPath(self.name).with_suffix("").as_posix() if is_file else self.name

    @property
    def place(self) -> str:
        """Where the clip is, for messages."""
        name = self.name if self.kind == "shards" else self.member
        return f"{self.path}: clip {name}" if name else str(self.path)


@dataclass(frozen=True)
class Holder:
    """A file or zarr store of several clips. name: its path relative to the split. origin, stamp: see `Source`."""

    path: Path
    name: str
    origin: str
    stamp: tuple[int, int, int]

    def source(
        self,
        kind: Literal["member", "array", "zarr", "row"],
        member: str,
        clip: int = 0,
        at: tuple[int, int] = (0, 0),
        key: str | None = None,
    ) -> Source:
        """The source of a clip in it. key: name of the clip in the file (None: `member`)."""
        key = member if key is None else key
        return Source(
            f"{self.name}/{key}", self.path, kind, f"{self.origin}/{member}", self.stamp, "", clip, member, at
        )


@dataclass(frozen=True)
class Found:
    """What is below a folder: sources of clips; and one message each for what is left out as unusable (`bad`), kept
    though it is odd (`notes`), and about no pictures (`ignored`)."""

    sources: tuple[Source, ...] = ()
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


def listed(names: Sequence[str]) -> str:
    """Names for a message: of each file extension the first ones, and the number of the others."""
    groups = defaultdict(list)
    for name in names:
        groups[os.path.splitext(name)[1]].append(name)
    parts = []
    for suffix, group in groups.items():
        more = len(group) - SHOWN
        parts.append(", ".join(group[:SHOWN]) + (f" and {more} more {suffix}".rstrip() if more > 0 else ""))
    return ", ".join(parts)
