"""Video files and folders of frames: real videos, exact round trips, damage that is named."""

import av
import numpy as np
import pytest
from PIL import Image

from raypipe.data.video.decoding import decode
from raypipe.data.video.fitting import Fit, VideoFit
from raypipe.data.video.folders import iter_images, natural
from raypipe.data.video.images import Levels
from raypipe.data.video.io import resize, write_gif, write_video
from tests.videotools import patch_count, read_frames, read_video, real_video


def moving(frames=6, height=32, width=48):
    rng = np.random.default_rng(0)
    return np.stack([np.roll(rng.integers(0, 256, (height, width, 3), np.uint8), t, axis=1) for t in range(frames)])


def write_lossless(path, frames, codec="ffv1"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"qp": "0"} if codec == "libx264rgb" else {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "rgb24" if codec == "libx264rgb" else "bgr0"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def save_frames(folder, frames, extension="png"):
    folder.mkdir(parents=True)
    for t, image in enumerate(frames):
        Image.fromarray(image).save(folder / f"frame_{t}.{extension}")
    return folder


@pytest.mark.parametrize(
    ("name", "shape"), [("carphone_pristine.mp4", (120, 144, 176, 3)), ("bikes.mp4", (250, 272, 640, 3))]
)
def test_real_videos_decode_in_full(name, shape):
    path = real_video(name)
    frames = read_video(path)
    assert frames.dtype == np.uint8
    assert frames.shape == shape
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(frames)
    assert 1 < np.abs(np.diff(frames[:10].astype(int), axis=0)).mean() < 40  # it moves, and is no noise


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("mp4", "libx264rgb")])
def test_lossless_round_trip(tmp_path, suffix, codec):
    frames = moving()
    write_lossless(tmp_path / f"a.{suffix}", frames, codec)
    np.testing.assert_array_equal(read_video(tmp_path / f"a.{suffix}"), frames)


def test_frames_are_read_in_natural_order(tmp_path):
    frames = moving(12)
    np.testing.assert_array_equal(read_frames(save_frames(tmp_path / "a", frames)), frames)
    assert sorted(["f10", "f9", "g1", "f"], key=natural) == ["f", "f9", "f10", "g1"]


def test_grey_and_transparent_frames_become_rgb(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("L", (8, 8), 100).save(tmp_path / "a" / "0.png")
    Image.new("RGBA", (8, 8), (1, 2, 3, 255)).save(tmp_path / "a" / "1.png")
    assert read_frames(tmp_path / "a")[:, 0, 0].tolist() == [[100, 100, 100], [1, 2, 3]]


@pytest.mark.parametrize("content", [b"", b"this is no video", bytes(5000)])
def test_a_file_that_is_no_video_is_named(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video"):
        read_video(tmp_path / "a.mp4")


def test_a_truncated_video_is_named(tmp_path):
    raw = real_video("carphone_pristine.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"a\.mp4"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["carphone_pristine.mp4", "bikes.mp4"])
def test_a_damaged_video_is_named_rather_than_painted_over(tmp_path, name):
    raw = bytearray(real_video(name).read_bytes())
    for position in range(len(raw) // 4, len(raw) // 2, len(raw) // 40):
        raw[position] ^= 255
    (tmp_path / "a.mp4").write_bytes(raw)
    with pytest.raises(ValueError, match=r"a\.mp4: not a readable video"):
        read_video(tmp_path / "a.mp4")


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a\.mp4: contains no video stream"):
        read_video(tmp_path / "a.mp4")


def test_bad_frames_are_named(tmp_path):
    folder = save_frames(tmp_path / "a", moving(3))
    Image.new("RGB", (8, 8)).save(folder / "frame_3.png")
    with pytest.raises(ValueError, match=r"frame_3\.png: is 8x8, but the frames before it are 48x32"):
        read_frames(folder)
    raw = (folder / "frame_1.png").read_bytes()
    (folder / "frame_1.png").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"frame_1\.png: not a readable image"):
        read_frames(folder)
    with pytest.raises(ValueError, match=r"a: no \.jpg frames in this folder"):
        read_frames(folder, "jpg")


def test_resize_crops_the_centre_and_averages():
    frames = np.zeros((2, 16, 32, 3), np.uint8)
    frames[:, :, 8:24] = 200
    assert (resize(frames, 8) == 200).all()
    checker = np.indices((16, 16)).sum(0)[None, ..., None].repeat(3, -1).astype(np.uint8) % 2 * 200
    assert np.abs(resize(checker, 8).astype(int)[:, 2:-2, 2:-2] - 100).max() <= 2
    same = moving(2, 32, 32)
    np.testing.assert_array_equal(resize(same, 32), same)
    assert resize(same[0], 64).shape == (64, 64, 3)


def test_deep_images_are_not_clipped(tmp_path):
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    (tmp_path / "a").mkdir()
    Image.fromarray(deep).save(tmp_path / "a" / "0.png")
    np.testing.assert_array_equal(read_frames(tmp_path / "a")[0], (deep >> 8)[..., None].repeat(3, -1))
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "a" / "0.tif")
    levels = Levels()
    levels.guess(iter_images(tmp_path / "a", ".tif"))
    (image,) = iter_images(tmp_path / "a", ".tif")
    np.testing.assert_array_equal(np.asarray(levels.rgb(image))[..., 0], np.round(deep / 257).astype(np.uint8))
    assert list(levels.notes()) == ["has 32-bit values, of which 65535 is taken for white; --white sets another level"]


def test_a_header_that_announces_too_many_frames_is_noted(tmp_path):
    frames = moving(8)
    write_lossless(tmp_path / "a.avi", frames)
    patch_count(tmp_path / "a.avi", 20)
    told = []
    assert len(list(decode(tmp_path / "a.avi", note=told.append))) == 8
    assert told == [f"{tmp_path / 'a.avi'}: its header announces 20 frames, but it contains 8"]
    patch_count(tmp_path / "a.avi", 8)
    told.clear()
    assert len(list(decode(tmp_path / "a.avi", threads=1, note=told.append))) == 8
    assert told == []


@pytest.mark.parametrize("size", [(32, 48), (33, 47)])
def test_written_videos_read_back(tmp_path, size):
    ramp = np.broadcast_to(np.linspace(0, 255, size[1])[None, None, :, None], (5, *size, 3)).astype(np.uint8)
    write_video(tmp_path / "a.mp4", ramp, fps=12.5)
    back = read_video(tmp_path / "a.mp4")[:, : size[0], : size[1]]
    assert back.shape == ramp.shape
    assert np.abs(back.astype(int) - ramp).mean() < 3
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == 12.5
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_written_gifs_read_back(tmp_path):
    write_gif(tmp_path / "a.gif", moving(5), fps=10)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["duration"]) == (5, (48, 32), 100)


@pytest.mark.parametrize("write", [write_video, write_gif])
def test_a_failed_write_leaves_what_was_there(tmp_path, write, monkeypatch):
    path = tmp_path / "a.out"
    path.write_text("before")
    with pytest.raises(ValueError, match="frames: must be uint8"):
        write(path, moving().astype(float), fps=10)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(path, moving(), fps=10)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.out", "before")]


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((0, 1, -1, 0), lambda frames: np.rot90(frames, -1, axes=(1, 2))),  # x' = -y, y' = x, as telephones write it
        ((-1, 0, 0, -1), lambda frames: np.rot90(frames, 2, axes=(1, 2))),
        ((0, -1, 1, 0), lambda frames: np.rot90(frames, 1, axes=(1, 2))),
        ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
        ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
        ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
        ((0, -1, -1, 0), lambda frames: np.rot90(frames, 2, axes=(1, 2)).swapaxes(1, 2)),
    ],
)
def test_videos_are_shown_as_the_matrix_of_the_track_says(tmp_path, matrix, shown):
    frames = moving(3, 32, 48)
    write_lossless(tmp_path / "a.mp4", frames, "libx264rgb")
    raw = bytearray((tmp_path / "a.mp4").read_bytes())
    place = raw.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    for i, value in enumerate([a, b, 0, c, d]):
        raw[place + 4 * i : place + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
    (tmp_path / "a.mp4").write_bytes(raw)
    turned = shown(frames)
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4"), turned)
    fit = VideoFit(Fit(32))
    np.testing.assert_array_equal(np.stack([fit(f) for f in decode(tmp_path / "a.mp4")]), resize(turned, 32))
