"""Clips in tar files, such as the shards of WebDataset: each video in it is a clip, and its key the clip's name."""

from __future__ import annotations

import mimetypes
import os
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raypipe.common.errors import UserError
from raypipe.data.conversion.source import Found, Holder, Source, listed
from raypipe.data.video.folders import image_suffix, readable
from raypipe.data.video.kinds import PLAIN_IMAGES, VIDEO_SUFFIXES, Kind, kind_of

PIECE = 1 << 20
"""Bytes that are copied at a time."""


def tar_clips(tar: Holder) -> Found:
    """The videos and animated images in an uncompressed tar file, and what is in it besides.

    Of a truncated file, the members that are whole are read; the others are named.
    """
    sources: list[Source] = []
    bad: list[str] = []
    others: dict[str, list[str]] = defaultdict(list)
    try:
        with tarfile.open(tar.path, "r:", errors="surrogateescape") as file:
            for member in _members(file, tar, bad):
                problem = _problem(member, tar)
                name = readable(member.name.removeprefix("./"))
                if problem:
                    bad.append(f"{tar.path}: clip {name}: {problem}")
                    continue
                kind = _kind(member, tar)
                if kind in ("video", "film"):
                    at = member.offset_data, member.size
                    sources.append(tar.source("member", name, at=at, key=os.path.splitext(name)[0]))
                elif kind == "bad":
                    bad.append(f"{tar.path}: clip {name}: neither FFmpeg nor Pillow finds a video or images in it")
                else:
                    others[kind].append(name)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        bad.append(f"{tar.path}: not a readable tar file ({error})")
    if others["image"]:
        bad.append(f"{tar.path}: {listed(others['image'])}: single images in a tar file, left out; unpack the tar file")
    ignored = [f"{tar.path}: {listed(names)}: no videos or images" for kind, names in others.items() if kind == "other"]
    if not (sources or bad):
        bad.append(f"{tar.path}: no videos in this tar file")
    return Found(tuple(sources), tuple(bad), (), tuple(ignored))


@contextmanager
def member_file(source: Source) -> Iterator[Path]:
    """A temporary copy of a member of a tar file, as FFmpeg and Pillow need a file."""
    begin, size = source.at
    with copied(_pieces(source.path, begin, size), source.member) as path:
        yield path


@contextmanager
def copied(pieces: Iterator[bytes], name: str) -> Iterator[Path]:
    """A temporary file with the given content and the suffix of `name`."""
    with tempfile.TemporaryDirectory(prefix="raypipe-") as folder:
        path = Path(folder) / f"clip{os.path.splitext(name)[1]}"
        with path.open("wb") as file:
            for piece in pieces:
                file.write(piece)
        yield path


def _pieces(path: Path, begin: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(begin)
        while size:
            piece = file.read(min(size, PIECE))
            if not piece:
                raise UserError("truncated")
            size -= len(piece)
            yield piece


def _members(file: tarfile.TarFile, tar: Holder, bad: list[str]) -> Iterator[tarfile.TarInfo]:
    """The members, without folders and hidden files. If the file is truncated or damaged, `bad` gets a message."""
    count, cut = 0, False
    try:
        for member in file:
            count += 1
            cut = member.offset_data + member.size > tar.stamp[1]
            if not member.isdir() and not os.path.basename(member.name).startswith("."):
                yield member
    except tarfile.ReadError:
        if not cut:
            bad.append(f"{tar.path}: damaged after {count} members; what follows is lost")
        return
    with tar.path.open("rb") as raw:
        raw.seek(file.offset)
        end = raw.read(tarfile.BLOCKSIZE)
    # tarfile takes a header that it cannot read for the end, unless it is the first one.
    if not cut and end != bytes(tarfile.BLOCKSIZE):
        bad.append(f"{tar.path}: truncated or damaged after {count} members (no end mark); what follows is lost")


def _problem(member: tarfile.TarInfo, tar: Holder) -> str | None:
    if member.offset_data + member.size > tar.stamp[1]:
        return "truncated, as the tar file is; copy it again"
    if readable(member.name) != member.name:
        return "its name is not UTF-8; rename it"
    if not member.isreg() or member.sparse is not None:
        return "a link or a special file, left out"
    return "empty" if member.size == 0 else None


def _kind(member: tarfile.TarInfo, tar: Holder) -> Kind:
    """By its suffix, which saves copying it; else by its content."""
    suffix = image_suffix(member.name)
    if suffix in VIDEO_SUFFIXES:
        return "video"  # if it is damaged, the reader says how
    if suffix in PLAIN_IMAGES:
        return "image"
    guess = mimetypes.guess_type(f"x{suffix}")[0]
    if guess and not guess.startswith(("video/", "image/")):
        return "other"
    with copied(_pieces(tar.path, member.offset_data, member.size), member.name) as path:
        kind = kind_of(str(path))
    return kind if kind in ("video", "film", "image", "other") else "bad"
