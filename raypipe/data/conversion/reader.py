"""Read the frames of a source, whatever its kind: used by the conversion and by `raypipe.generate` alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from raypipe.common.errors import UserError
from raypipe.data.conversion.arrays import to_rgb
from raypipe.data.conversion.holders import OpenHolder
from raypipe.data.conversion.source import Source
from raypipe.data.shards import Shards, open_shards
from raypipe.data.video.decoding import Video
from raypipe.data.video.fitting import Fit, Frames, VideoFit
from raypipe.data.video.folders import frame_names, iter_images, odd_numbering
from raypipe.data.video.images import Levels, iter_film
from raypipe.data.video.kinds import kind_of
from raypipe.data.video.timing import resample

Timed = Iterator[tuple[float | None, Callable[[], Frames]]]
"""Time in seconds (None: unknown) of each frame, and a function that makes the frame at the size of the output."""


@dataclass(frozen=True)
class Sampling:
    """Which frames of a source are taken, and how they are shown.

    fit: geometry of the output. stride: every stride-th frame, counted after resampling. fps: frame rate to resample
    to; None: keep each source's own. white: value that is shown white, for images with more than 8 bits.
    """

    fit: Fit
    stride: int = 1
    fps: float | None = None
    white: float | None = None


class SourceReader:
    """Reads sources frame by frame; keeps source shards, arrays and tables open between their clips.

    note: called with messages about what is odd. rate: frames per second of the source read last, before `stride`;
    None if unknown.
    """

    def __init__(self, sampling: Sampling, note: Callable[[str], None]) -> None:
        self.sampling, self.note = sampling, note
        self.rate: float | None = None
        self._shards: dict[Path, Shards] = {}
        self._holder = OpenHolder()

    def frames(self, source: Source) -> Iterator[Frames]:
        """The frames, uint8 [size, size, 3]. Raises UserError, naming the file, if the source is unreadable."""
        self.rate = None
        for i, make in enumerate(self._resampled(source)):
            if i % self.sampling.stride == 0:
                yield make()

    def _resampled(self, source: Source) -> Iterator[Callable[[], Frames]]:
        kinds = {"video": self._video, "film": self._film, "frames": self._images, "shards": self._stored}
        kinds |= {"array": self._numbers, "zarr": self._numbers, "member": self._unpacked, "row": self._unpacked}
        timed = kinds[source.kind](source)
        if self.sampling.fps is None:
            yield from (make for _, make in timed)
            return
        if source.kind in ("frames", "shards", "array", "zarr"):
            self.note(f"{source.place}: has no frame rate, so --fps leaves its frames as they are")
            yield from (make for _, make in timed)
            return
        try:
            yield from resample(_known(timed, lambda: self.rate), self.sampling.fps)
        except UserError as error:
            text = str(error)
            raise UserError(text if str(source.path) in text else f"{source.path}: {text}") from None
        self.rate = self.sampling.fps

    def _video(self, source: Source) -> Timed:
        video = Video(source.path, note=self.note)
        fit: VideoFit | None = None
        levels = Levels(self.sampling.white)
        for frame in video:
            fit = fit or VideoFit(self.sampling.fit, float(video.aspect), levels)
            self.rate = video.rate
            yield frame.time, partial(fit, frame)
        self._notes_of(levels, source)

    def _film(self, source: Source) -> Timed:
        first = count = 0.0
        for time, make in self._converted(source, lambda: iter_film(source.path)):
            count += 1
            first = time or 0.0 if count == 1 else first
            if time is not None and time > first:
                self.rate = (count - 1) / (time - first)
            yield time, make

    def _images(self, source: Source) -> Timed:
        names = frame_names(source.path, source.suffix)
        odd = odd_numbering(names)
        if odd:
            self.note(f"{source.path}: {odd}")
        yield from self._converted(source, lambda: ((None, i) for i in iter_images(source.path, source.suffix, names)))

    def _converted(self, source: Source, images: Callable[[], Iterator[tuple[float | None, Image.Image]]]) -> Timed:
        levels = Levels(self.sampling.white)
        size: tuple[int, int] | None = None
        for number, (time, image) in enumerate(images()):
            size = size or image.size
            if image.size != size:
                raise UserError(f"{source.path}: frame {number} is {image.size}, but the first frame is {size}")
            if levels.needs_guess(image):
                levels.guess(frame for _, frame in images())
            yield time, partial(self.sampling.fit.image, levels.rgb(image))
        self._notes_of(levels, source)

    def _notes_of(self, levels: Levels, source: Source) -> None:
        for text in levels.notes():
            self.note(f"{source.path}: {text}")

    def _stored(self, source: Source) -> Timed:
        if source.path not in self._shards:
            self._shards[source.path] = open_shards(source.path)
        shards = self._shards[source.path]
        for t in range(int(shards.lengths[source.clip])):
            yield None, partial(self._stored_frame, shards, source.clip, t)

    def _numbers(self, source: Source) -> Timed:
        try:
            for number, values in enumerate(self._holder.frames(source)):
                yield None, partial(self.sampling.fit.array, to_rgb(values, number))
        except UserError as error:
            raise UserError(f"{source.place}: {error}") from None

    def _unpacked(self, source: Source) -> Timed:
        """A video that lies in a tar file or a table, read from a file of its own."""
        path = ""

        def placed(text: str) -> str:
            return text.replace(path, source.place) if path and path in text else f"{source.place}: {text}"

        inner = SourceReader(self.sampling, lambda text: self.note(placed(text)))
        try:
            with self._holder.file(source) as file:
                path = str(file)
                kind = kind_of(path)
                if kind not in ("video", "film"):
                    raise UserError("neither FFmpeg nor Pillow finds a video in it")
                timed = inner._video if kind == "video" else inner._film
                for frame in timed(replace(source, path=file)):
                    self.rate = inner.rate
                    yield frame
        except UserError as error:
            raise UserError(placed(str(error))) from None

    def _stored_frame(self, shards: Shards, clip: int, t: int) -> Frames:
        return self.sampling.fit.array(shards.frames(clip, [t])[0])


def _known(timed: Timed, rate: Callable[[], float | None]) -> Iterator[tuple[float, Callable[[], Frames]]]:
    """The times of the frames, which follow from the frame rate where the file does not store them."""
    for number, (time, make) in enumerate(timed):
        if time is None:
            fps = rate()
            if not fps:
                raise UserError("has neither times nor a frame rate, so --fps cannot resample it")
            time = number / fps
        yield time, make
