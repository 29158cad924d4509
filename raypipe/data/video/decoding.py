"""Decode the frames of video files with FFmpeg."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from raypipe.common.errors import UserError
from raypipe.data.video.kinds import ffmpeg_url
from raypipe.data.video.truncation import stated_size

ODD_ASPECT = 8
"""Sample aspect ratios above this, or below its inverse, are taken for errors of the header."""
HEADER = 4096
"""Bytes that the header of a YUV4MPEG2 file has at most."""
SEARCH = 3000
"""Packets that are searched for the first key frame."""


class Video:
    """A video file whose frames can be decoded one by one; all have the same size.

    threads: number of decoder threads, 0 for one per processor. note: called with a message about what is odd.
    """

    def __init__(self, path: str | Path, threads: int = 1, note: Callable[[str], None] | None = None) -> None:
        self.path, self.threads = Path(path), threads
        self.aspect = Fraction(1)
        self.rate: float | None = None
        self._note = note or (lambda text: None)
        self._lost = self._size = 0
        self._start: int | None = None

    def __iter__(self) -> Iterator[av.VideoFrame]:
        """Decode. `aspect` and `rate` are known from the first frame on.

        Raises UserError, naming the file, if it has no video, cannot be decoded completely or is truncated.
        """
        count = 0
        try:
            with av.open(ffmpeg_url(self.path)) as container:
                stream = self._stream(container)
                announced = stream.frames
                with closing(self._decode(container, stream)) as frames:
                    for frame in frames:
                        count += 1
                        yield frame
        except (av.FFmpegError, OSError) as error:
            if not (count and self._after_raw_frames(count) > 0):
                raise UserError(f"{self.path}: not a readable video ({error.strerror or error})") from None
        if count == 0:
            raise UserError(f"{self.path}: no frame of this video can be decoded")
        if self._lost:
            self._say(f"its first {self._lost} frames cannot be decoded (no key frame before them), left out")
        elif announced > count:
            self._say(f"its header announces {announced} frames, but it contains {count}")
        rest = self._after_raw_frames(count)
        if rest > 0:
            self._say(f"its last {rest} bytes are no whole frame, left out")

    def _after_raw_frames(self, count: int) -> int:
        """Bytes after `count` frames of a YUV4MPEG2 file, which FFmpeg skips or refuses; 0 for other formats."""
        with self.path.open("rb") as file:
            header = file.readline(HEADER)
        if not header.startswith(b"YUV4MPEG2 "):
            return 0
        return self.path.stat().st_size - len(header) - count * (len(b"FRAME\n") + self._size)

    def _say(self, text: str) -> None:
        self._note(f"{self.path}: {text}")

    def _stream(self, container: Any) -> Any:
        """The stream of the film, set up for decoding. Pictures such as a cover are no film."""
        every = container.streams.video
        pictures = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
        films = [stream for stream in every if not stream.disposition & pictures]
        if not films:
            raise UserError(f"{self.path}: contains no video stream{', only a cover picture' if every else ''}")
        # FFmpeg's choice is the stream with the most frames and the highest rate; a cover may be a stream as well.
        best = container.streams.best("video")
        film = best if best in films else films[0]
        if len(films) > 1:
            self._say(f"contains {len(films)} video streams; number {films.index(film) + 1} is read")
        # After opening: FFmpeg gives a clear error for a file that is no video.
        stated, held = stated_size(self.path), self.path.stat().st_size
        if stated is not None and stated > held:
            raise UserError(f"{self.path}: truncated: it has {held} bytes, but its header says {stated}")
        stream = film
        stream.thread_type, stream.thread_count = "AUTO", self.threads
        # By default FFmpeg conceals decoding errors, so a damaged file would yield smeared frames.
        stream.codec_context.options = {"err_detect": "explode"}
        self.rate = float(stream.average_rate) if stream.average_rate else None
        aspect = stream.sample_aspect_ratio or Fraction(1)
        if not Fraction(1, ODD_ASPECT) <= aspect <= ODD_ASPECT:
            self._say(f"its pixels are said to have the aspect ratio {aspect}, which is not believed")
            aspect = Fraction(1)
        self.aspect = aspect
        return stream

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """The packets from the first key frame on; all of them if there is no key frame. Sets `_lost` and `_start`."""
        packets = container.demux(stream)
        waiting: list[Any] = []
        for packet in packets:
            if packet.size and not packet.is_keyframe and len(waiting) < SEARCH:
                waiting.append(packet)
                continue
            if packet.size and packet.is_keyframe:
                self._lost, self._start = len(waiting), packet.pts
                waiting = []
            yield from waiting
            yield packet
            break
        yield from packets

    def _decode(self, container: Any, stream: Any) -> Generator[av.VideoFrame, None, None]:
        shape: tuple[int, int] | None = None
        count = 0
        for packet in self._packets(container, stream):
            self._size = self._size or packet.size
            try:
                frames = packet.decode()
            except av.FFmpegError:
                # Frames that are shown before the first key frame refer to frames that are not there.
                leads = self._start is not None and packet.pts is not None and packet.pts < self._start
                if (count and not leads) or self._lost > SEARCH:
                    raise
                self._lost += 1
                continue
            for frame in frames:
                if count == 0 and frame.is_corrupt:
                    self._lost += 1
                    continue
                shape = shape or (frame.height, frame.width)
                if (frame.height, frame.width) != shape:
                    found, first = f"{frame.width}x{frame.height}", f"{shape[1]}x{shape[0]}"
                    raise UserError(f"{self.path}: frame {count} is {found}, but the first frame is {first}")
                count += 1
                yield frame


def decode(path: str | Path, threads: int = 0, note: Callable[[str], None] | None = None) -> Iterator[av.VideoFrame]:
    """Decode the frames of a video file one by one, see `Video`."""
    return iter(Video(path, threads, note))
