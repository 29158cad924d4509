"""Cut files are noticed in every container, also where FFmpeg reads to the cut and is content."""

import av
import numpy as np
import pytest

from raypipe.data.video.truncation import stated_size
from tests.videotools import read_video

CODECS = {
    "a.avi": "ffv1",
    "b.avi": "mpeg4",
    "c.mkv": "ffv1",
    "d.webm": "libvpx-vp9",
    "e.mp4": "libx264",
    "f.mov": "libx264",
}


def write(path, codec, options=None, frames=30):
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            image = rng.integers(0, 256, (48, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("options", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
@pytest.mark.parametrize("name", CODECS)
def test_a_cut_file_is_named(tmp_path, name, options):
    if options and name[-3:] not in ("mp4", "mov"):
        pytest.skip("an option of mp4 and mov")
    path = tmp_path / name
    write(path, CODECS[name], options)
    raw = path.read_bytes()
    assert len(read_video(path)) == 30
    assert (stated_size(path) or 0) <= len(raw)
    for share in (0.3, 0.5, 0.77, 0.95):
        path.write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(ValueError, match=path.name):
            read_video(path)


def test_what_states_no_size_passes(tmp_path):
    live = tmp_path / "live.mkv"
    write(live, "ffv1", {"live": "1"})
    assert stated_size(live) is None
    assert len(read_video(live)) == 30
    write(tmp_path / "a.avi", "ffv1")
    raw = bytearray((tmp_path / "a.avi").read_bytes())
    raw[4:8] = bytes(4)  # a recorder that was switched off
    (tmp_path / "a.avi").write_bytes(raw)
    assert stated_size(tmp_path / "a.avi") is None
    (tmp_path / "x").write_bytes(b"something else altogether")
    assert stated_size(tmp_path / "x") is None
    (tmp_path / "x").write_bytes(b"")
    assert stated_size(tmp_path / "x") is None


def test_bytes_behind_the_video_do_no_harm(tmp_path):
    for name, codec in CODECS.items():
        write(tmp_path / name, codec)
        if not name.endswith(("mp4", "mov")):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + bytes(100))
        assert (stated_size(tmp_path / name) or 0) <= (tmp_path / name).stat().st_size
        assert len(read_video(tmp_path / name)) == 30
