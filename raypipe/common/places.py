"""Where a user says that data lie: a local path, or the URI of a remote file or folder, such as s3://bucket/folder."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

Place = Path | str
"""A local path, or the URI of something remote."""


def is_uri(text: str) -> bool:
    return "://" in text


def to_place(text: str) -> Place:
    """Convert what a user typed: the URI of something remote as it is, and file:// URIs and paths to a Path."""
    parts = urlsplit(text)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return text.rstrip("/") if is_uri(text) else Path(text)
