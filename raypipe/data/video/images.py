"""Read images of any format, mode and bit depth that Pillow opens, as 8-bit RGB; also files with several frames."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from raypipe.common.errors import UserError

Sample = TypeVar("Sample", np.uint8, np.uint16)

FORMATS_WITHOUT_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow only identifies, or reads only with another program."""
STILL_FORMATS = frozenset({"MPO", "PSD", "ICO", "ICNS", "CUR"})
"""Formats whose further frames are previews, layers or sizes of one picture."""
# Pillow limits the text in a PNG to 1 MB, but editors store whole documents there; none of it is kept.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28

SUBFILE_TYPE, REDUCED = 254, 1
"""TIFF tag of a page's kind, and its bit for a thumbnail or pyramid level."""
ORIENTATION = 0x0112
SAMPLES = "samples of 16 bits"
"""Key in the `info` of an RGB image for its uint16 samples [H, W, 3], of which Pillow itself keeps only 8 bits."""
WHITES = (1, 255, 65535)
"""White levels that are tried for values of 32 bits: the first that no value exceeds."""


class UnknownFormatError(UserError):
    """A file is in no format that Pillow knows."""


class Levels:
    """Converts images of one clip to 8-bit RGB, all with the same white level.

    white: value that becomes 255, for images with more than 8 bits per channel; None: the largest value of 16 bits, or
    for 32 bits, the `guess`. Transparent pixels are shown over black, as padding is.
    """

    def __init__(self, white: float | None = None) -> None:
        self.white = white
        self.transparent = False
        self.deep = False
        self.brightest = self.darkest = 0.0
        self._guess: float | None = None
        self._halved = False

    def guess(self, frames: Iterator[Image.Image]) -> None:
        """Choose the white level of a clip with 32-bit values: the first of `WHITES` that covers them, or their max."""
        top = 0.0
        for frame in frames:
            values = np.nan_to_num(np.asarray(frame), posinf=0, neginf=0)
            top = max(top, float(values.max()))
            self.darkest = min(self.darkest, float(values.min()))
        self._guess = next((float(white) for white in WHITES if top <= white), top)

    def needs_guess(self, image: Image.Image) -> bool:
        """Whether the white level of an image must be derived from all frames of its clip."""
        return self.white is None and self._guess is None and image.mode in ("I", "F") and image.format != "PPM"

    def rgb(self, image: Image.Image) -> Image.Image:
        """Convert an image to mode RGB."""
        if SAMPLES in image.info:
            samples = image.info[SAMPLES]
            if samples is not None:
                return Image.fromarray(self.scaled(samples))
            self._halved = True
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(self.scaled(np.asarray(image))).convert("RGB")
        if image.mode == "LAB":
            to_srgb = ImageCms.buildTransform(
                ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
            )
            return ImageCms.applyTransform(image, to_srgb) or image
        if image.has_transparency_data:
            return self._over_black(image.convert("RGBA"))
        return image.convert("RGB")

    def scaled(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Convert values of 16 or 32 bits to 8 bits, in any shape."""
        if values.dtype.itemsize == 2:
            words = values.astype(np.uint16)
            self.deep, self.brightest = True, max(self.brightest, float(words.max(initial=0)))
            if self.white is None:
                return (words >> 8).astype(np.uint8)
        white = self.white or self._guess or 65535.0
        scaled: NDArray[np.float64] = np.nan_to_num(values.astype(np.float64)) * (255 / white)
        return scaled.round().clip(0, 255).astype(np.uint8)

    def _over_black(self, image: Image.Image) -> Image.Image:
        if image.getchannel("A").getextrema() != (255, 255):
            self.transparent = True
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return image.convert("RGB")

    def notes(self) -> Iterator[str]:
        """What is odd about the levels of the clip."""
        if self.transparent:
            yield "has transparent pixels, which are shown over black"
        if self._guess is not None:
            yield f"has 32-bit values, of which {self._guess:g} is taken for white; --white sets another level"
        if self.darkest < 0:
            yield f"has values down to {self.darkest:g}; those below 0 are shown black"
        if self._halved:
            yield "only the upper 8 bits of its 16-bit colors are read, so --white has no effect on them"
        if self.deep and self.white is None and self.brightest < 1 << 14:
            bits = max(1, int(self.brightest).bit_length())
            yield (
                f"its 16-bit values reach only {self.brightest:g}: {int(self.brightest) // 256 + 1} of 256 levels;"
                f" if they have {bits} bits, use --white {(1 << bits) - 1}"
            )


@contextmanager
def opened(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file. Raises UserError, naming the file, if it or a frame read from it is damaged."""
    try:
        with Image.open(path) as image:
            if image.format in FORMATS_WITHOUT_PIXELS:
                raise UserError(f"{path}: not a readable image ({image.format} has no decoder)")
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise arbitrary exceptions for damaged files
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: not a readable image ({error.strerror})") from None
        if isinstance(error, UnidentifiedImageError):
            empty = " (the file is empty)" if os.path.getsize(path) == 0 else ""
            raise UnknownFormatError(f"{path}: not a readable image{empty}") from None
        raise UserError(f"{path}: not a readable image ({error})") from None


def read_still(path: str | Path) -> Image.Image:
    """The image in a file, upright, in its own mode. Raises UserError as `opened`, and for an animation."""
    with opened(path) as image:
        if is_film(image):
            raise UserError(f"{path}: has {_count(image)} frames, but is one of several images in its folder")
        deep = _is_deep_color(image)
        image.load()
        turned = upright(image)
        if deep:
            # FFmpeg does not know the orientation in EXIF data.
            turned.info[SAMPLES] = deep_samples(path) if turned is image else None
        return turned


def _is_deep_color(image: Image.Image) -> bool:
    """Whether an image, opened but not loaded, has color or transparency and 16 bits per sample."""
    tiles: Sequence[Any] = getattr(image, "tile", ())
    return image.mode in ("RGB", "RGBA", "LA", "CMYK") and any(";16" in str(tile[-1]) for tile in tiles)


def deep_samples(path: str | Path) -> NDArray[np.uint16] | None:
    """The samples [H, W, 3] of an image with 16 bits per sample, over black; None if FFmpeg cannot read it."""
    try:
        with av.open(f"file:{os.fspath(path)}") as container:
            frame = next(container.decode(video=0))
    except (av.FFmpegError, OSError, StopIteration):
        return None
    return over_black(frame.to_ndarray(format="rgba64le").astype(np.uint16, copy=False))


def over_black(pixels: NDArray[Sample]) -> NDArray[Sample]:
    """Pixels [H, W, 4] with transparency as they are seen over black, [H, W, 3], in the same integer type."""
    color, alpha = pixels[..., :3], pixels[..., 3:]
    top = np.iinfo(pixels.dtype).max
    if (alpha == top).all():
        return np.ascontiguousarray(color)
    return ((color.astype(np.uint32) * alpha + top // 2) // top).astype(pixels.dtype)


def is_film(image: Image.Image) -> bool:
    """Whether an opened image file has several frames or pages."""
    return bool(getattr(image, "is_animated", False)) and image.format not in STILL_FORMATS and _count(image) > 1


def _count(image: Image.Image) -> int:
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    return sum(1 for _ in _pages(image))


def _pages(image: Image.Image) -> Iterator[int]:
    """Numbers of the frames of a file; without the thumbnails and pyramid levels of a TIFF."""
    # The default image of an APNG is a still for programs that show no animations.
    for number in range(1 if image.info.get("default_image") else 0, getattr(image, "n_frames", 1)):
        image.seek(number)
        tags = getattr(image, "tag_v2", {})
        if not (isinstance(image, TiffImagePlugin.TiffImageFile) and tags.get(SUBFILE_TYPE, 0) & REDUCED):
            yield number
    image.seek(0)


def iter_film(path: str | Path) -> Iterator[tuple[float | None, Image.Image]]:
    """Time in seconds (None: unknown) and image of every frame of an animated or multi-page file, upright."""
    with opened(path) as image:
        time = 0.0
        timed = image.format != "TIFF"
        for number in list(_pages(image)):
            image.seek(number)
            deep = _is_deep_color(image)
            image.load()
            # Viewers show a frame without a duration for 100 ms; some programs write 1 ms for none.
            duration = float(image.info.get("duration") or 0)
            duration = duration if duration > 1 else 100.0
            frame = image.copy()
            frame.format = image.format
            if deep:
                frame.info[SAMPLES] = None
            yield (time if timed else None), upright(frame)
            time += duration / 1000


def upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image as its EXIF data says, if it has any."""
    if image.format == "TIFF" or "exif" in image.info or "Raw profile type exif" in image.info:
        kind = image.format
        orientation = image.getexif().get(ORIENTATION, 1)
        if orientation != 1 and orientation in range(2, 9):
            turned = ImageOps.exif_transpose(image)
            turned.format = kind
            return turned
    return image
