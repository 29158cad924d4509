"""Clips in NumPy files and zarr stores: arrays [clips, T, H, W] or [clips, T, H, W, C], uint8 or floats in [0, 1].

The headers of NumPy files are parsed here, and their content is taken as plain numbers: nothing is ever unpickled.
"""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from raypipe.common.errors import UserError, as_user_error, first_line
from raypipe.common.extras import need
from raypipe.data.conversion.source import Found, Holder, Source
from raypipe.data.video.fitting import Frames

WANTED = "must be [clips, T, H, W] or [clips, T, H, W, C] with C = 1 or 3, uint8 or floating point in [0, 1]"
PIECE = 1 << 20
"""Bytes that are read at a time."""
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
)
"""What zipfile, its decompressors and the parser of headers raise."""


def array_problem(shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Why an array holds no clips; None if it does."""
    if dtype.hasobject:
        return f"holds Python objects, which are not unpickled; {WANTED}"
    told = f"is {dtype} {list(shape)}"
    if dtype != np.uint8 and dtype.kind != "f":
        return f"{told}; {WANTED}"
    if 0 in shape:
        return f"{told}, which is empty"
    if len(shape) == 4 and shape[-1] <= 4:
        return f"{told}, which looks like one clip [T, H, W, C]; {WANTED}, as array[None] is"
    if len(shape) == 5 and shape[-1] not in (1, 3) and shape[2] in (1, 3):
        return f"{told}, which looks like [clips, T, C, H, W]; {WANTED}, so move the channels to the end"
    if len(shape) not in (4, 5) or (len(shape) == 5 and shape[-1] not in (1, 3)):
        return f"{told}; {WANTED}"
    return None


def to_rgb(values: NDArray[Any], number: int) -> Frames:
    """A frame [H, W] or [H, W, C] as uint8 [H, W, 3]. Raises UserError for floats outside of [0, 1]."""
    if values.dtype != np.uint8:
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):
            raise UserError(f"frame {number} has values from {low:g} to {high:g}; floating point must be in [0, 1]")
        values = (values.astype(np.float32) * 255).round().astype(np.uint8)
    if values.ndim == 2:
        values = values[..., None]
    return np.repeat(values, 3, axis=-1) if values.shape[-1] == 1 else values


class NumpyArray:
    """An array in a .npy file, or in a .npz file, whose clips are read one after another, frame by frame.

    member: name of the array in a .npz file; empty for a .npy file. Raises UserError if it is damaged or has no
    clips.
    """

    def __init__(self, path: Path, member: str) -> None:
        with _damage():
            self._zip = zipfile.ZipFile(path) if member else None
            self._file: IO[bytes] = self._zip.open(f"{member}.npy") if self._zip else path.open("rb")
        try:
            with _damage():
                self.shape, self._dtype = _header(self._file)
        except UserError:
            self.close()
            raise
        self._begin = self._file.tell()

    def close(self) -> None:
        self._file.close()
        if self._zip:
            self._zip.close()

    def check(self) -> None:
        """Read a member of a .npz file to its end, where its checksum is compared. Raises UserError if it differs."""
        with _damage():
            while self._zip and self._file.read(PIECE):
                pass

    @property
    def bytes(self) -> int:
        """Size of the file that this header announces."""
        return self._begin + int(np.prod(self.shape, dtype=object)) * self._dtype.itemsize

    def clip(self, index: int) -> Iterator[NDArray[Any]]:
        """The frames of a clip."""
        size = int(np.prod(self.shape[2:])) * self._dtype.itemsize
        with _damage():
            self._file.seek(self._begin + index * self.shape[1] * size)
        for _ in range(self.shape[1]):
            with _damage():
                content = self._file.read(size)
            if len(content) < size:
                raise UserError("truncated")
            yield np.frombuffer(content, self._dtype).reshape(self.shape[2:])


def _damage() -> AbstractContextManager[None]:
    return as_user_error(DAMAGED, "damaged, or no array of numbers")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise UserError(f"its format {version} is only for arrays with named fields; {WANTED}")
    shape, fortran, dtype = HEADERS[version](file)
    problem = array_problem(shape, dtype)
    if problem:
        raise NoClipsError(problem, shape, dtype)
    if fortran:
        raise UserError("is stored in Fortran's order; save np.ascontiguousarray(array)")
    return shape, dtype


class NoClipsError(UserError):
    """An array is whole, but holds no clips."""

    def __init__(self, message: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        super().__init__(message)
        self.beside = len(shape) < 4 and not dtype.hasobject
        """Whether it may well be something else that belongs to the clips, such as their labels."""


def array_clips(file: Holder) -> Found:
    """The clips in a .npy or .npz file; one that is damaged or truncated is left out whole."""
    if not zipfile.is_zipfile(file.path):
        return _arrays(file, [""])
    try:
        with zipfile.ZipFile(file.path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except DAMAGED as error:
        return Found(bad=(f"{file.path}: damaged ({first_line(error)})",))
    return _arrays(file, names) if names else Found(bad=(f"{file.path}: holds no arrays",))


def _arrays(file: Holder, names: list[str]) -> Found:
    sources: list[Source] = []
    bad: list[str] = []
    beside: list[str] = []
    for name in names:
        where = f"{file.path}: {name}" if name else str(file.path)
        try:
            array = NumpyArray(file.path, name)
            with closing(array):
                array.check()
        except NoClipsError as error:
            (beside if error.beside else bad).append(f"{where}: {error}")
            continue
        except UserError as error:
            bad.append(f"{where}: {error}")
            continue
        if not name and array.bytes > file.stamp[1]:
            bad.append(f"{where}: truncated: it has {file.stamp[1]} bytes, but its header says {array.bytes}")
            continue
        sources += [file.source("array", f"{name}/{i}" if name else str(i), i) for i in range(array.shape[0])]
    return Found(tuple(sources), (*bad, *(() if sources else beside)), (), tuple(beside) if sources else ())


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr store."""
    return any(os.path.isfile(folder / name) for name in ZARR_FILES)  # also where the folder cannot be entered


def zarr_stamp(folder: Path) -> tuple[int, int, int]:
    """The stamp of a zarr store, see `Source`."""
    stats = [os.stat(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names]
    return len(stats), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def zarr_arrays(path: Path) -> dict[str, Any]:
    """The arrays of a zarr store by name; that of a store that is an array is empty. Raises UserError if unreadable."""
    zarr = need("zarr", "zarr", "reading a zarr store")
    try:
        root = zarr.open(str(path), mode="r")
        if isinstance(root, zarr.Array):
            return {"": root}
        return {name: array for name, array in root.members(max_depth=None) if isinstance(array, zarr.Array)}
    except Exception as error:  # its codecs and metadata raise arbitrary exceptions for damaged stores
        raise UserError(f"not a readable zarr store ({first_line(error)})") from None


def zarr_clips(store: Holder) -> Found:
    """The clips in a zarr store, which is an array, or a group of arrays."""
    try:
        arrays = zarr_arrays(store.path)
    except UserError as error:
        return Found(bad=(f"{store.path}: {error}",))
    sources: list[Source] = []
    bad: list[str] = []
    notes: list[str] = []
    beside: list[str] = []
    for name, array in arrays.items():
        where = f"{store.path}: {name}" if name else str(store.path)
        problem = array_problem(array.shape, array.dtype)
        if problem:
            (beside if len(array.shape) < 4 and not array.dtype.hasobject else bad).append(f"{where}: {problem}")
        elif "pickle" in str(array.metadata.to_dict()).lower():
            bad.append(f"{where}: is encoded by pickle, which is not read")
        else:
            sources += [store.source("zarr", f"{name}/{i}" if name else str(i), i) for i in range(array.shape[0])]
            missing = array.nchunks - array.nchunks_initialized
            if missing:
                notes.append(f"{where}: {missing} of its {array.nchunks} chunks are not stored, and are read as "
                             f"{array.fill_value}")  # fmt: skip
    if not arrays:
        bad.append(f"{store.path}: holds no arrays")
    return Found(tuple(sources), (*bad, *(() if sources else beside)), tuple(notes), tuple(beside) if sources else ())


def zarr_frames(array: Any, index: int) -> Iterator[NDArray[Any]]:
    """The frames of a clip, read by the chunks of the array along time."""
    length, step = array.shape[1], array.chunks[1]
    for begin in range(0, length, step):
        try:
            block = np.asarray(array[index, begin : begin + step])
        except Exception as error:  # as above
            raise UserError(f"damaged ({first_line(error)})") from None
        yield from block
