"""Detect truncated video files by the size stored in their container.

FFmpeg reads a truncated Matroska or AVI file up to its end without an error, so missing frames would go unnoticed. RIFF
(AVI) stores the size in its header, EBML (Matroska, WebM) in the Segment header, ISO media (MP4, MOV) in each box.
Formats without a size (MPEG streams, live recordings) are not checked.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

SEGMENT = bytes.fromhex("18538067")
EBML = bytes.fromhex("1a45dfa3")
BOXES = frozenset(
    b"ftyp moov mdat moof mfra free skip wide udta meta uuid sidx ssix styp pdin emsg prft pnot PICT idat".split()
)
"""Types of the boxes at the top level of ISO media."""


def stated_size(path: Path) -> int | None:
    """Minimum size of the file in bytes according to its container; None if the container does not store it."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            size = int.from_bytes(head[4:8], "little")
            # 0 and the largest number mean unknown: the writer could not seek back to fill in the size.
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
    """Read an EBML variable-length integer. Its length in bytes is 1 plus the leading zero bits of the first byte.

    None if it is invalid, or if all its bits are ones, which means unknown.
    """
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
        if length < 8:  # 0: the box extends to the end of the file; 1 to 7: no valid box
            return size
        if position and head[4:8] not in BOXES:  # bytes that some program appended
            return position
        position += length
    return position
