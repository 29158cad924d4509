"""`best/manifest.json`: how the models beside it work together."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from raypipe.common.errors import UserError
from raypipe.config import Solver

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What `best/manifest.json` says of the models beside it; it may say more, which is not read here.

    flow, denoiser, diffusion: names of the trials they come from; None where there is none. fps: predicted
    (whole) frames a second, where the dataset has a rate.
    """

    flow: str | None
    alpha: float
    beta: float
    steps: int
    num_input_frames: int
    image_size: int
    frame_stride: int
    dataset: str
    denoiser: str | None = None
    diffusion: str | None = None
    constant_std: list[float] | None = None
    solver: Solver = "euler_maruyama"
    fps: float | None = None


def find_best(folder: Path) -> Path:
    """`folder/best`, or `folder` itself if it is one. Raises ValueError, saying what to do, if there is none."""
    # An experiment's own folder holds a manifest.json too, of another kind: best/ comes first.
    for place in (folder / "best", folder):
        if (place / MANIFEST).is_file() and (place / "autoencoder").is_dir() and not (place / "config.yaml").is_file():
            return place
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: this experiment has no {Path('best') / MANIFEST}; run python -m raypipe.evaluate")
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give an experiment's folder, or the best/ in it")
    raise UserError(
        f"{folder}: not a predictor's folder (no {MANIFEST}); give an experiment's folder, or the best/ in it that "
        "python -m raypipe.evaluate makes"
    )


def read_manifest(folder: Path) -> Manifest:
    """Raises ValueError, naming the field, for anything that is no predictor's manifest."""
    path = folder / MANIFEST
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        manifest = TypeAdapter(Manifest).validate_python(fields)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}); run python -m raypipe.evaluate again") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise UserError(f"{path}: {where}: {first['msg']}; run python -m raypipe.evaluate again") from None
    for name in ("steps", "num_input_frames", "image_size", "frame_stride"):
        if getattr(manifest, name) < 1:
            raise UserError(f"{path}: {name}: must be at least 1, not {getattr(manifest, name)}")
    return manifest
