"""Read a folder of images, one image per frame."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from PIL import Image

from raypipe.common.errors import UserError
from raypipe.data.video.decoding import Video
from raypipe.data.video.images import UnknownFormatError, read_still

SAME_SUFFIX = {".jpeg": ".jpg", ".jpe": ".jpg", ".jfif": ".jpg", ".tiff": ".tif"}
NUMBER = re.compile(r"(\d+)(?=\D*$)", re.ASCII)


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key for natural order: frame_2 comes before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)] + [(-1, name)]


def image_suffix(name: str) -> str:
    """The suffix of a file name in lower case; the same for all suffixes of one format."""
    suffix = os.path.splitext(name)[1].lower()
    return SAME_SUFFIX.get(suffix, suffix)


def frame_names(folder: str | Path, suffix: str) -> list[str]:
    """Names of the files in a folder with this `image_suffix`, in natural order.

    Hidden files, and those whose names are not UTF-8, are left out; the search for clips names them.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
    return sorted((n for n in names if image_suffix(n) == suffix and readable(n) == n), key=natural)


def readable(name: str) -> str:
    """A name with the bytes that are not UTF-8 written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def iter_images(folder: str | Path, suffix: str, names: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """The images in a folder one by one, in natural order of their names, upright; all have the same size.

    names: `frame_names` of the folder, if they are known. Raises UserError, naming the file, if an image is unreadable
    or differs in size from the first.
    """
    size: tuple[int, int] | None = None
    names = frame_names(folder, suffix) if names is None else names
    if not names:
        raise UserError(f"{folder}: no {suffix or 'image'} frames in this folder")
    for name in names:
        path = os.path.join(folder, name)
        image = _read(path)
        size = size or image.size
        if image.size != size:
            raise UserError(f"{path}: is {_by(image.size)}, but the frames before it are {_by(size)}")
        yield image


def _read(path: str) -> Image.Image:
    try:
        return read_still(path)
    except UnknownFormatError as unknown:
        try:
            return Image.fromarray(next(iter(Video(path))).to_ndarray(format="rgb24"))
        except UserError:
            raise unknown from None


def odd_numbering(names: Sequence[str]) -> str | None:
    """What is odd about the numbers in the names of a clip's frames, which are in order: gaps, several numberings."""
    stems = [os.path.splitext(name)[0] for name in names]
    matches = [NUMBER.search(stem) for stem in stems]
    forms = {f"{stem[: m.start()]}#{stem[m.end() :]}" for stem, m in zip(stems, matches, strict=True) if m}
    if None in matches:
        return None if len(names) == 1 else "some of its frames have no number, so their order is that of their names"
    if len(forms) > 1:
        return f"its frames have {len(forms)} kinds of names ({', '.join(sorted(forms)[:3])}), read one after another"
    steps = [int(b[1]) - int(a[1]) for a, b in pairwise(m for m in matches if m)]
    if 0 in steps:
        twice = steps.index(0)
        return f"several of its frames have the same number, such as {names[twice]} and {names[twice + 1]}"
    usual = max(set(steps), key=lambda step: (steps.count(step), -step), default=0)
    gaps = [i for i, step in enumerate(steps) if step > usual]
    if usual < 1 or not gaps or any(step % usual for step in steps):
        return None
    missing = sum(steps[i] // usual - 1 for i in gaps)
    first = gaps[0]
    return f"{missing} of its frames are missing, the first between {names[first]} and {names[first + 1]}"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
