"""Networks shared by several model folders: stored once, and referred to by relative path and weights hash."""

import os
from collections.abc import Iterator
from pathlib import Path

from raypipe.checkpoint.folder import PARTS, Meta, read_meta, weights_hash
from raypipe.common.errors import UserError


def refer(folder: Path, target: Path) -> str:
    """Path of the model folder `target`, relative to `folder`."""
    return os.path.relpath(target.absolute(), folder.absolute())


def follow(folder: Path, reference: str, digest: str) -> Path:
    """Find the model folder that a reference points to.

    If it no longer has the weights with hash `digest`, a folder with these weights is searched next to `folder`.
    Raises UserError if there is none.
    """
    expected = at(folder, reference)
    found = expected if _has_weights(expected, digest) else find(folder, digest)
    if found is None:
        raise UserError(
            f"{folder}: refers to the network in {expected} (sha256 {digest[:12]}...), which no longer exists; "
            "restore it, or import the file again"
        )
    return found


def at(folder: Path, reference: str) -> Path:
    """The path that a reference points to."""
    return Path(os.path.normpath(folder / reference))


def find(folder: Path, digest: str, like: Meta | None = None) -> Path | None:
    """Search the folders next to `folder`, and the networks inside them, for a model with these weights.

    like: the model must also have the same network configuration as this Meta. Returns None if there is none.
    """
    matches = (
        place
        for place in _neighbors(folder)
        if (like is None or _network(read_meta(place)) == _network(like)) and _has_weights(place, digest)
    )
    return next(matches, None)


def _neighbors(folder: Path) -> Iterator[Path]:
    """The model folders next to `folder`, then the subfolders of imported model folders next to it."""
    parent = folder.parent
    others = sorted(path for path in parent.iterdir() if path.name[:1] != ".") if parent.is_dir() else []
    yield from filter(_is_model, others)
    yield from filter(_is_model, (path / part for path in others for part in PARTS))


def _is_model(folder: Path) -> bool:
    try:
        read_meta(folder)
    except (ValueError, OSError):
        return False
    return True


def _has_weights(folder: Path, digest: str) -> bool:
    return _is_model(folder) and weights_hash(folder) == digest


def _network(meta: Meta) -> tuple[object, ...]:
    """Network configuration: models with equal weights may differ in it, as in the number of attention heads."""
    return meta.component, meta.model, meta.network, meta.arguments, meta.latent_channels, meta.input_range
