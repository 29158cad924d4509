"""The source of one clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal


@dataclass(frozen=True)
class Source:
    """The source of one clip.

    name: clip name, its path relative to the split, unique there. path: the video file, the animated or multi-page
    image file (`film`), the folder of frames, or the folder of shards. origin: the clip's source as written to the
    manifest. stamp: number of files, their total bytes and newest modification time in ns, to detect a changed source.
    suffix: `image_suffix` of the frames. clip: index of the clip in the shards.
    """

    name: str
    path: Path
    kind: Literal["video", "film", "frames", "shards"]
    origin: str
    stamp: tuple[int, int, int]
    suffix: str = ""
    clip: int = 0

    @property
    def identity(self) -> str:
        """Key by which duplicates are found: the name, without the file extension for a file."""
        is_file = self.kind in ("video", "film")
        return PurePosixPath(self.name).with_suffix("").as_posix() if is_file else self.name

    @property
    def place(self) -> str:
        """Where the clip is, for messages."""
        return f"{self.path}: clip {self.name}" if self.kind == "shards" else str(self.path)


@dataclass(frozen=True)
class Found:
    """What is below a folder: sources of clips; and one message each for what is left out as unusable (`bad`), kept
    though it is odd (`notes`), and about no pictures (`ignored`)."""

    sources: tuple[Source, ...] = ()
    bad: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
