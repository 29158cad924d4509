"""Clips in the tables of Hugging Face `datasets`: Parquet files, and the Arrow files of `save_to_disk`.

A row is a clip: its video is stored in the table, or the table holds the path of its file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.common.errors import UserError, as_user_error
from raypipe.data.conversion.source import Found, Holder, Source
from raypipe.data.conversion.tars import copied

STATE = "state.json"
"""File of `save_to_disk` that lists the Arrow files of a dataset; others are caches of what was computed from them."""
WANTED = "must have one column of the feature Video, or named video, with the bytes of videos or their paths"


class Table:
    """A Parquet or Arrow file. Raises UserError if it is damaged, or has no single column of videos."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _damage():
            with path.open("rb") as file:
                head = file.read(6)
            self._parquet = pq.ParquetFile(path) if head[:4] == b"PAR1" or path.suffix == ".parquet" else None
            if self._parquet is not None:
                schema, self.rows = self._parquet.schema_arrow, self._parquet.metadata.num_rows
            else:
                mapped = pa.memory_map(str(path))
                reader = pa.ipc.open_file(mapped) if head == b"ARROW1" else pa.ipc.open_stream(mapped)
                self._table = reader.read_all()
                schema, self.rows = self._table.schema, len(self._table)
        self.column = _video_column(schema)
        self._type = schema.field(self.column).type
        self._group, self._begin = -1, 0

    def paths(self) -> list[str | None]:
        """The path in each row, which may be only the name that the file of a stored video had."""
        has_path = pa.types.is_struct(self._type) and self._type.get_field_index("path") >= 0
        if not has_path and not _is_text(self._type):
            return [None] * self.rows
        with _damage():
            name = f"{self.column}.path" if has_path else self.column  # without the bytes
            table = self._table if self._parquet is None else self._parquet.read(columns=[name])
            chunks = table[self.column].chunks
            return [path for c in chunks for path in (c.field("path") if has_path else c).to_pylist()]

    def value(self, row: int) -> tuple[bytes | None, str | None]:
        """The bytes and the path in a row."""
        with _damage():
            value = self._column_of(row)[row - self._begin].as_py()
        if isinstance(value, dict):
            return value.get("bytes"), value.get("path")
        return (None, value) if isinstance(value, str) else (value, None)

    def _column_of(self, row: int) -> Any:
        """The column of videos of the row group with a row, which begins at `_begin`; the last one is kept."""
        if self._parquet is None:
            return self._table[self.column]
        end, number = 0, -1
        while end <= row:
            number, begin = number + 1, end
            end += self._parquet.metadata.row_group(number).num_rows
        if number != self._group:
            self._loaded = self._parquet.read_row_group(number, columns=[self.column])
            self._group, self._begin = number, begin
        return self._loaded[self.column]


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_video(kind: Any) -> bool:
    """Whether a column may hold videos: bytes, paths, or a struct of both as Hugging Face's Video is stored."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 or kind.get_field_index("path") >= 0)
    return _is_text(kind) or bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _video_column(schema: Any) -> str:
    features: dict[str, Any] = {}
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored:
        try:
            features = json.loads(stored)["info"]["features"]
        except (ValueError, KeyError, TypeError):
            features = {}
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    found = [name for name in schema.names if kinds.get(name) == "Video"]
    if not found:
        possible = [name for name in schema.names if _is_video(schema.field(name).type)]
        free = [name for name in possible if kinds.get(name) not in ("Image", "Audio")]
        found = [name for name in free if name == "video"] or [
            name for name in free if pa.types.is_struct(schema.field(name).type)
        ]
    if len(found) == 1 and _is_video(schema.field(found[0]).type):
        return str(found[0])
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UserError(f"its columns are {columns}; {WANTED}")


def table_clips(file: Holder) -> Found:
    """The clips in a table. Rows that name a file below the table's folder are left to the search, which finds it."""
    try:
        table = Table(file.path)
        paths = table.paths()
    except UserError as error:
        return Found(bad=(f"{file.path}: {error}",))
    if not table.rows:
        return Found(bad=(f"{file.path}: has no rows",))
    stems = [path and PurePosixPath(path.replace("\\", "/")).stem for path in paths]
    unique = all(stems) and len(set(stems)) == len(stems)
    home = file.path.parent
    found = {i for i, path in enumerate(paths) if path and _is_below(home / path, home)}
    keys = [str(stem if unique else i) for i, stem in enumerate(stems)]
    sources = [file.source("row", key, i) for i, key in enumerate(keys) if i not in found]
    note = (f"{file.path}: {len(found)} of its rows name files of its folder, which are read by themselves",)
    return Found(tuple(sources), (), (), note if found else ())


def _is_below(path: Path, folder: Path) -> bool:
    return path.is_file() and folder.resolve() in path.resolve().parents


@contextmanager
def row_file(table: Table, source: Source) -> Iterator[Path]:
    """The file of a row: a temporary one if the video is stored in the table."""
    content, path = table.value(source.clip)
    if content:
        with copied(iter([content]), path or "") as copy:
            yield copy
    elif path:
        named = source.path.parent / path
        if not named.is_file():
            raise UserError(f"its row names the file {path}, which does not exist")
        yield named
    else:
        raise UserError("its row holds neither bytes nor a path")


def foreign_tables(folder: Path, names: list[str]) -> list[str]:
    """The Arrow files of a folder that its `state.json` does not list; none if there is no such file."""
    try:
        listed = {entry["filename"] for entry in json.loads((folder / STATE).read_text())["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if name.endswith(".arrow") and name not in listed]


def _damage() -> AbstractContextManager[None]:
    return as_user_error((pa.ArrowException, OSError, ValueError), "not a readable table")
