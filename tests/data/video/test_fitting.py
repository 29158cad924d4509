"""Frames in squares: geometry, exactness where nothing is scaled, and quality where something is."""

import av
import numpy as np
import pytest
from PIL import Image

from raypipe.data.video.decoding import decode
from raypipe.data.video.fitting import Fit, VideoFit
from tests.videotools import real_video

SIZES = [(64, 64), (97, 64), (64, 97), (33, 200), (16, 16), (200, 31)]


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_crop_takes_the_centre(width, height):
    image = noise(height, width)
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    centre = Image.fromarray(image[top : top + side, left : left + side])
    expected = np.asarray(centre.resize((32, 32), Image.Resampling.LANCZOS))
    for found in (Fit(32).array(image), Fit(32).image(Image.fromarray(image))):
        assert found.shape == (32, 32, 3)
        assert np.abs(found.astype(int) - expected).max() <= 2


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_pad_keeps_the_whole_frame_in_black_bars(width, height):
    fit = Fit(32, "pad")
    white = np.full((height, width, 3), 255, np.uint8)
    square = fit.array(white)[..., 0] == 255
    rows, columns = np.flatnonzero(square.any(1)), np.flatnonzero(square.any(0))
    assert (len(columns), len(rows)) == fit.extent(width, height)
    assert max(len(rows), len(columns)) == 32
    assert abs(len(columns) / len(rows) - width / height) <= width / height / min(len(rows), len(columns))
    for found in (rows, columns):
        assert abs(found[0] - (31 - found[-1])) <= 1  # in the middle
    assert square.sum() == len(rows) * len(columns)


def test_what_has_the_size_stays_exact():
    image = noise(32, 48)
    np.testing.assert_array_equal(Fit(32).array(image), image[:, 8:40])
    wide = Fit(48, "pad").array(image)
    np.testing.assert_array_equal(wide[8:40], image)
    assert not wide[:8].any() and not wide[40:].any()


def test_grey_is_luma_in_three_equal_channels():
    image = noise(32, 32)
    grey = Fit(32, grey=True).array(image)
    luma = image @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert (grey == grey[..., :1]).all()
    assert np.abs(grey[..., 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(Fit(32, grey=True).array(grey), grey)


def exact_planes(frame):
    """Y, U, V of a yuv420p frame at full size, without their offsets; colours enlarged in floating point."""
    raw, height, width = frame.to_ndarray(format="yuv420p"), frame.height, frame.width
    y, rest = raw[:height].astype(np.float32), raw[height:].reshape(2, height // 2, width // 2).astype(np.float32)
    u, v = (np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in rest)
    return y - 16, u - 128, v - 128


@pytest.mark.parametrize("mode", ["crop", "pad"])
@pytest.mark.parametrize("name", ["bikes.mp4", "carphone_pristine.mp4"])
def test_video_is_scaled_as_by_pillow_from_exact_colours(name, mode):
    """The reference: each frame to RGB in floating point by BT.601 (limited range), then Lanczos."""
    fit = VideoFit(Fit(64, mode))
    for i, frame in enumerate(decode(real_video(name))):
        if i % 40:
            continue
        y, u, v = exact_planes(frame)
        rgb = [1.164384 * y + 1.596027 * v, 1.164384 * y - 0.391762 * u - 0.812968 * v, 1.164384 * y + 2.017232 * u]
        box, extent = fit.fit.region(frame.width, frame.height), fit.fit.extent(frame.width, frame.height)
        planes = [Image.fromarray(p.clip(0, 255).astype(np.float32)) for p in rgb]
        expected = np.stack([p.crop(box).resize(extent, Image.Resampling.LANCZOS) for p in planes], -1).clip(0, 255)
        found = fit(frame).astype(float)
        top, left = (64 - extent[1]) // 2, (64 - extent[0]) // 2
        difference = found[top : top + extent[1], left : left + extent[0]] - expected
        assert np.abs(difference).mean() < 1
        assert np.abs(difference.mean((0, 1))).max() < 0.3  # no bias, which a training would see
        assert np.percentile(np.abs(difference), 99) <= 4


@pytest.mark.parametrize("pixels", ["bgr0", "gbrp", "rgb24"])
def test_rgb_video_is_scaled_by_pillow(pixels):
    image = noise(48, 80)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
    np.testing.assert_array_equal(VideoFit(Fit(32))(frame), Fit(32).array(image))


def test_a_video_may_change_its_format_and_repeat_its_times():
    ramp = np.linspace(0, 255, 80)[None, :, None] * np.linspace(0.5, 1, 48)[:, None, None]
    image = np.broadcast_to(ramp, (48, 80, 3)).astype(np.uint8)
    fit = VideoFit(Fit(32))
    frames = [av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=f) for f in ("yuv420p", "yuv444p")]
    for frame in [frames[0], frames[0], frames[1], frames[0]]:
        frame.pts = 7
        assert np.abs(fit(frame).astype(int) - Fit(32).array(image)).max() <= 3
