"""Files and zarr stores that hold several clips: how they are listed, and how one of their clips is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from raypipe.data.conversion.arrays import NumpyArray, array_clips, is_zarr, zarr_arrays, zarr_clips, zarr_frames
from raypipe.data.conversion.source import Found, Holder, Source
from raypipe.data.conversion.tables import Table, row_file, table_clips
from raypipe.data.conversion.tars import member_file, tar_clips
from raypipe.data.video.kinds import Kind, kind_of

HOLDERS: Mapping[Kind, Callable[[Holder], Found]] = MappingProxyType(
    {"tar": tar_clips, "array": array_clips, "table": table_clips}
)


def holds_clips(path: Path) -> bool:
    """Whether a path is a folder, which may hold clips, or a file of several."""
    return path.is_dir() or (path.is_file() and kind_of(str(path)) in HOLDERS)


def clips_in(holder: Holder) -> Found:
    """The clips of a file, or of a zarr store."""
    return zarr_clips(holder) if is_zarr(holder.path) else HOLDERS[kind_of(str(holder.path))](holder)


class OpenHolder:
    """Reads the clips of holders; the last one stays open, as its clips come one after another."""

    def __init__(self) -> None:
        self._key: tuple[Path, str] | None = None
        self._open: Any = None

    def frames(self, source: Source) -> Iterator[NDArray[Any]]:
        """The frames of a clip of an array, [H, W] or [H, W, C]. Raises UserError, without the place, if damaged."""
        array = source.member.rpartition("/")[0]
        if source.kind == "zarr":
            yield from zarr_frames(self._opened(source, array, lambda: zarr_arrays(source.path)[array]), source.clip)
        else:
            yield from self._opened(source, array, lambda: NumpyArray(source.path, array)).clip(source.clip)

    def file(self, source: Source) -> AbstractContextManager[Path]:
        """The video of a member of a tar file or of a row of a table, as a file for the time of the context."""
        if source.kind == "member":
            return member_file(source)
        return row_file(self._opened(source, "", lambda: Table(source.path)), source)

    def _opened(self, source: Source, part: str, open_it: Callable[[], Any]) -> Any:
        if self._key != (source.path, part):
            if isinstance(self._open, NumpyArray):
                self._open.close()
            self._key = None
            self._open = open_it()
            self._key = source.path, part
        return self._open
