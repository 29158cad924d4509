"""Read images of any format, mode and bit depth that Pillow opens, as 8-bit RGB; also files with several frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from raypipe.common.errors import UserError

FORMATS_WITHOUT_PIXELS = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
"""Formats that Pillow only identifies, or reads only with another program."""
STILL_FORMATS = frozenset({"MPO", "PSD", "ICO", "ICNS", "CUR"})
"""Formats whose further frames are previews, layers or sizes of one picture."""
# Pillow limits the text in a PNG to 1 MB, but editors store whole documents there; none of it is kept.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 1 << 28

SUBFILE_TYPE, REDUCED = 254, 1
"""TIFF tag of a page's kind, and its bit for a thumbnail or pyramid level."""
ORIENTATION = 0x0112
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
        self.brightest = 0.0
        self._guess: float | None = None

    def guess(self, frames: Iterator[Image.Image]) -> None:
        """Choose the white level of a clip with 32-bit values: the first of `WHITES` that covers them, or their max."""
        top = max(float(np.nan_to_num(np.asarray(frame), posinf=0).max()) for frame in frames)
        self._guess = next((float(white) for white in WHITES if top <= white), top)

    def needs_guess(self, image: Image.Image) -> bool:
        """Whether the white level of an image must be derived from all frames of its clip."""
        return self.white is None and self._guess is None and image.mode in ("I", "F") and image.format != "PPM"

    def rgb(self, image: Image.Image) -> Image.Image:
        """Convert an image to mode RGB."""
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(self.grey(np.asarray(image))).convert("RGB")
        if image.mode == "LAB":
            to_srgb = ImageCms.buildTransform(
                ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
            )
            return ImageCms.applyTransform(image, to_srgb) or image
        if image.has_transparency_data:
            return self._over_black(image.convert("RGBA"))
        return image.convert("RGB")

    def grey(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Convert values of 16 or 32 bits to 8 bits."""
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
            raise UnknownFormatError(f"{path}: not a readable image") from None
        raise UserError(f"{path}: not a readable image ({error})") from None


def read_still(path: str | Path) -> Image.Image:
    """The image in a file, upright, in its own mode. Raises UserError as `opened`, and for an animation."""
    with opened(path) as image:
        if is_film(image):
            raise UserError(f"{path}: has {_count(image)} frames, but is one of several images in its folder")
        image.load()
        return upright(image)


def is_film(image: Image.Image) -> bool:
    """Whether an opened image file has several frames or pages."""
    return bool(getattr(image, "is_animated", False)) and image.format not in STILL_FORMATS and _count(image) > 1


def _count(image: Image.Image) -> int:
    if image.format != "TIFF":
        return int(getattr(image, "n_frames", 1))
    return sum(1 for _ in _pages(image))


def _pages(image: Image.Image) -> Iterator[int]:
    """Numbers of the frames of a file; without the thumbnails and pyramid levels of a TIFF."""
    for number in range(getattr(image, "n_frames", 1)):
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
            image.load()
            # Viewers show a frame without a duration for 100 ms; some programs write 1 ms for none.
            duration = float(image.info.get("duration") or 0)
            duration = duration if duration > 1 else 100.0
            frame = image.copy()
            frame.format = image.format
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
