"""Networks that several model folders share: stored once, referred to by path and by the hash of their weights."""

import os
from collections.abc import Iterator
from pathlib import Path

from raypipe.checkpoint.folder import PARTS, Meta, read_meta, weights_hash
from raypipe.common.errors import UserError


def refer(folder: Path, target: Path) -> str:
    """The path from one model folder to another."""
    return os.path.relpath(target.absolute(), folder.absolute())


def follow(folder: Path, reference: str, digest: str) -> Path:
    """The folder of these weights: where `refer` said, or, after a renaming, wherever beside `folder` they are.

    Raises ValueError if they are not there.
    """
    said = at(folder, reference)
    found = said if _holds(said, digest) else find(folder, digest)
    if found is None:
        raise UserError(
            f"{folder}: refers to the network in {said} (sha256 {digest[:12]}...), which is not there any more; "
            "bring it back, or import the file again"
        )
    return found


def at(folder: Path, reference: str) -> Path:
    """Where a reference points to."""
    return Path(os.path.normpath(folder / reference))


def find(folder: Path, digest: str, like: Meta | None = None) -> Path | None:
    """A model folder beside `folder`, or inside one there, of these weights (and of the network that `like` tells)."""
    fits = (
        place
        for place in _beside(folder)
        if (like is None or _network(read_meta(place)) == _network(like)) and _holds(place, digest)
    )
    return next(fits, None)


def _beside(folder: Path) -> Iterator[Path]:
    """The model folders of the same parent, then those inside them."""
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


def _holds(folder: Path, digest: str) -> bool:
    return _is_model(folder) and weights_hash(folder) == digest


def _network(meta: Meta) -> tuple[object, ...]:
    """What the weights alone do not tell, such as the number of attention heads."""
    return meta.component, meta.model, meta.network, meta.arguments, meta.latent_channels
