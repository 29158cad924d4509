"""`best/manifest.json`: how the models next to it are combined to a predictor."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raypipe.checkpoint import hub
from raypipe.common.errors import UserError
from raypipe.common.files import write_json
from raypipe.common.places import Place
from raypipe.config import Component, Solver
from raypipe.data.conversion.preprocessing import Preprocessing
from raypipe.data.remote import fetch, fetch_file
from raypipe.forecast.decoding import DECODINGS, PLAIN

MANIFEST = "manifest.json"
CONSTANT = "constant"
"""Name of the constant diffusion, in a manifest and in combinations.parquet."""
JOINT = "joint"
"""The same for the noise of a joint network, which is both flow and diffusion."""


@dataclass(frozen=True)
class Manifest:
    """The entries of `best/manifest.json` that describe the predictor; the file may have others.

    flow, denoiser, diffusion: name of the trial that trained the component; None: the predictor has no such component;
    diffusion "constant": a constant diffusion; "joint": the flow is a joint network, which has its own noise. alpha,
    beta: factors of denoiser and diffusion, see `raypipe.sde`. steps: integration steps per frame interval.
    num_input_frames: K. image_size: height and width of the frames. frame_stride: frames of the dataset per frame
    interval. dataset: name of the dataset. constant_std: [C], standard deviation of the constant diffusion. solver:
    name of the SDE solver. preprocessing: how the frames of the dataset were made from videos; None if unknown, as in
    manifests of earlier versions. models: number of trainings of the flow that take turns, member by member.
    decoding: how latents become frames, a key of `raypipe.forecast.decoding.DECODINGS`. last_frame_won: whether
    repeating the last frame was better in pixels on validation.
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
    preprocessing: Preprocessing | None = None
    models: int = 1
    decoding: str = PLAIN
    last_frame_won: bool = False


def model_folder(component: Component, number: int) -> str:
    """Name of the folder in `best/` of a component, or of its training number `number`, which counts from 1."""
    return component if number == 1 else f"{component}-{number}"


def find_best(folder: Place) -> Path:
    """`folder/best` if `folder` is an experiment with one, or `folder` if it is a best/. Raises UserError otherwise.

    folder: a path, or a URI, of which best/ alone is copied to this machine; hf://USER/NAME is a repository of the
    Hugging Face Hub.
    """
    if isinstance(folder, str):
        return _pushed(folder) if folder.startswith(hub.SCHEME) else _fetch_best(folder)
    # The folder of an experiment also has a manifest.json, with other entries, so best/ is tried first.
    for place in (folder / "best", folder):
        if (place / MANIFEST).is_file() and (place / "autoencoder").is_dir() and not (place / "config.yaml").is_file():
            return place
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: this experiment has no {Path('best') / MANIFEST}; run python -m raypipe.evaluate")
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give an experiment's folder, or the best/ in it")
    raise UserError(
        f"{folder}: not a predictor's folder (no {MANIFEST}); give an experiment's folder, or the best/ in it that "
        "python -m raypipe.evaluate creates"
    )


def _fetch_best(uri: str) -> Path:
    base, mark, query = uri.partition("?")
    for place in (f"{base}/best{mark}{query}", uri):
        if fetch_file(place, MANIFEST) is not None and fetch_file(place, "config.yaml") is None:
            return find_best(fetch(place))
    raise UserError(
        f"{uri}: not a predictor's folder (no {Path('best') / MANIFEST} and no {MANIFEST}); give the URI of an "
        "experiment's folder, or of the best/ in it"
    )


def _pushed(uri: str) -> Path:
    folder = hub.fetch(uri)
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{uri}: not a predictor (no {MANIFEST}); give one that raypipe checkpoint push wrote")
    return find_best(folder)


def write_manifest(path: Path, manifest: Manifest, ran: Mapping[str, Any]) -> None:
    """Write a predictor's manifest to the file `path`. ran: further entries, from `raypipe.workspace.manifest`."""
    write_json(path, {**ran, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in a folder. Raises UserError, naming the entry, if it is not a predictor's manifest."""
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
    for name in ("steps", "num_input_frames", "image_size", "frame_stride", "models"):
        if getattr(manifest, name) < 1:
            raise UserError(f"{path}: {name}: must be at least 1, not {getattr(manifest, name)}")
    if manifest.decoding not in DECODINGS:
        known = ", ".join(DECODINGS)
        raise UserError(f"{path}: decoding: must be one of {known}, not {manifest.decoding!r}; update raypipe")
    return manifest
