"""Files that end before their container says so.

FFmpeg reads a cut Matroska or AVI file up to the cut and reports no error, so a lost half would go unnoticed.
These containers state their sizes: RIFF (AVI) in its header, EBML (Matroska, WebM) in the Segment's, ISO media
(MP4, MOV) in each box. Streams without a size (MPEG, or a live recording) pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

SEGMENT = bytes.fromhex("18538067")
EBML = bytes.fromhex("1a45dfa3")


def stated_size(path: Path) -> int | None:
    """Bytes that the file must have by its own account, at least; None where it does not say."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            size = int.from_bytes(head[4:8], "little")
            # Writers that could not go back leave 0 or the largest number.
            return None if size in (0, 0xFFFFFFFF) else 8 + size
        if head[:4] == EBML:
            return _segment_end(file)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _last_box_end(file, path.stat().st_size)
    return None


def _segment_end(file: BinaryIO) -> int | None:
    file.seek(4)
    header = _number(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != SEGMENT:
        return None
    size = _number(file)
    return None if size is None else file.tell() + size


def _number(file: BinaryIO) -> int | None:
    """An EBML size: as many bytes as the first has leading zeros, and one; all ones means unknown."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") - (1 << (7 * length))
    return None if value == (1 << (7 * length)) - 1 else value


def _last_box_end(file: BinaryIO, size: int) -> int:
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: to the end of the file; else no box
            return size
        position += length
    return position
