"""What a conversion did to the frames of videos; it is stored beside the shards and travels with the models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raypipe.common.errors import UserError
from raypipe.data.shards.storage import Folder, list_files
from raypipe.data.video.fitting import MODES

RECORD = "conversion.json"
"""File in the folder of a converted split: options, sources, and the preprocessing of its frames."""


@dataclass(frozen=True)
class Preprocessing:
    """How the frames of a dataset were made from videos, so that other videos can be treated the same way.

    size, fit, grey: see `Fit`. frame_stride: every frame_stride-th frame was kept, after resampling to `fps` frames per
    second (None: not resampled). white: white level of 16-bit images (None: 65535).
    """

    size: int
    fit: str = "crop"
    grey: bool = False
    frame_stride: int = 1
    fps: float | None = None
    white: float | None = None

    def __post_init__(self) -> None:
        if self.fit not in MODES:
            raise ValueError(f"fit: must be one of {', '.join(MODES)}, not {self.fit!r}")
        for name in ("size", "frame_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        for name in ("fps", "white"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: must be above 0, not {value}")

    def __str__(self) -> str:
        kept = f"{'cropped' if self.fit == 'crop' else 'padded'} to {self.size}x{self.size}"
        parts = [kept, "grey" if self.grey else "color", every(self.frame_stride)]
        if self.fps is not None:
            parts.insert(2, f"{self.fps:g} frames per second")
        if self.white is not None:
            parts.append(f"white at {self.white:g}")
        return ", ".join(parts)

    def then(self, later: Preprocessing) -> Preprocessing:
        """The preprocessing of frames to which this one was applied first, and `later` to its result."""
        return Preprocessing(
            later.size,
            self.fit,  # its result is square, so the later fit only scales
            self.grey or later.grey,
            self.frame_stride * later.frame_stride,
            self.fps or later.fps,
            self.white or later.white,
        )


def every(stride: int) -> str:
    """`every 5th frame` for 5, `every frame` for 1."""
    if stride == 1:
        return "every frame"
    last = {1: "st", 2: "nd", 3: "rd"}.get(stride % 10, "th")
    return f"every {stride}{'th' if stride % 100 in (11, 12, 13) else last} frame"


def check_strides(first: int, second: int, where: str, remedy: str) -> None:
    """Raise UserError if the same stride above 1 is given twice, which is hardly meant: the strides multiply.

    where: the field or flag of the second stride. remedy: how to state either meaning.
    """
    if first == second > 1:
        raise UserError(
            f"{where}: {second}, but the shards were already converted with --frame-stride {first}: {first} x {second} "
            f"= {every(first * second)} of the videos; {remedy}"
        )


def from_options(options: dict[str, Any]) -> Preprocessing:
    """The preprocessing by the options of a conversion, as a dict of fields of `Options`."""
    known = {name: options[name] for name in Preprocessing.__dataclass_fields__ if name in options}
    return TypeAdapter(Preprocessing).validate_python({"size": options["image_size"], **known})


def read_preprocessing(folder: Folder) -> Preprocessing | None:
    """The preprocessing of the frames in a folder of shards; None if the folder does not tell.

    Raises UserError if the record of the conversion is damaged.
    """
    file = list_files(folder).get(RECORD)
    if file is None:
        return None
    try:
        with file.staged() as path:
            record = json.loads(path.read_text(encoding="utf-8"))
        if "preprocessing" not in record:  # a conversion by an earlier version
            return from_options(record["options"])
        return TypeAdapter(Preprocessing).validate_python(record["preprocessing"])
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "preprocessing"
        raise UserError(f"{file}: {where}: {first['msg']}; convert the videos again") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: damaged; convert the videos again, or delete it if they need no conversion") from None
