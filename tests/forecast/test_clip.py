"""The input of generate is prepared as the conversion prepared the model's training videos."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image

from raypipe import convert_to_h5
from raypipe.data.conversion.preprocessing import Preprocessing
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.data.video.io import write_video
from raypipe.forecast.clip import read_clip
from raypipe.forecast.manifest import Manifest, read_manifest

MADE = Preprocessing(32, "pad", True, 5)
MANIFEST = Manifest(
    flow="flow-00",
    alpha=1.0,
    beta=1.0,
    steps=1,
    num_input_frames=2,
    image_size=32,
    frame_stride=1,
    dataset="mine",
    preprocessing=MADE,
)


def frames(count=40):
    """A bright square that moves over a colored ground."""
    clip = np.full((count, 64, 96, 3), (30, 90, 160), np.uint8)
    for t in range(count):
        clip[t, 4 + t : 14 + t, 2 * t : 10 + 2 * t] = (220, 180, 40)
    return clip


def convert(tmp_path, name, *options):
    flags = ["--data_dir", tmp_path / "videos", "--out_dir", tmp_path / name, "--num-workers", 1, "--image_size", 32]
    assert convert_to_h5.main([str(flag) for flag in [*flags, *options]]) == 0
    return tmp_path / name / "test"


@pytest.fixture(params=["video", "images"])
def raw(request, tmp_path):
    """A raw clip among the test videos."""
    folder = tmp_path / "videos" / "test"
    folder.mkdir(parents=True)
    if request.param == "video":
        write_video(folder / "a.mp4", frames(), fps=10)
        return folder / "a.mp4"
    (folder / "a").mkdir()
    for t, frame in enumerate(frames()):
        Image.fromarray(frame).save(folder / "a" / f"{t}.png")
    return folder / "a"


@pytest.mark.parametrize("stride", [1, 2])
def test_a_raw_clip_equals_its_conversion(raw, tmp_path, stride):
    shards = convert(tmp_path, "out", "--fit", "pad", "--grey", "--frame-stride", 5)
    manifest = replace(MANIFEST, frame_stride=stride)
    clip, stored = (read_clip(path, manifest, None) for path in (raw, shards))
    np.testing.assert_array_equal(clip.frames, open_shards(shards).clip(0)[::stride])
    np.testing.assert_array_equal(clip.frames, stored.frames)
    assert clip.prepared.startswith("padded to 32x32, grey, every 5th frame (as the model's training videos)")
    assert stored.prepared.startswith("as stored in the shards")
    assert ("of these, every 2nd frame (dataset.frame_stride)" in clip.prepared) == (stride == 2)
    assert clip.fps == (2 / stride if raw.suffix else 8)


def test_a_manifest_without_it_loads_and_the_assumption_is_said(raw, tmp_path):
    fields = {name: value for name, value in asdict(MANIFEST).items() if name != "preprocessing"}
    (tmp_path / "manifest.json").write_text(json.dumps(fields))
    manifest = read_manifest(tmp_path)
    assert manifest.preprocessing is None
    clip = read_clip(raw, manifest, 3)
    np.testing.assert_array_equal(clip.frames, open_shards(convert(tmp_path, "out")).clip(0)[:5])
    assert clip.prepared == (
        "cropped to 32x32, color, every frame (assumed, as the model does not say how its videos were)"
    )


def test_the_manifest_keeps_it(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(asdict(MANIFEST)))
    assert read_manifest(tmp_path) == MANIFEST
    broken = asdict(MANIFEST) | {"preprocessing": {"size": 32, "fit": "stretch"}}
    (tmp_path / "manifest.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=r"manifest.json: preprocessing: .*fit: must be one of crop, pad"):
        read_manifest(tmp_path)


def test_of_other_shards_only_the_rest_is_done(raw, tmp_path):
    whole = convert(tmp_path, "whole", "--fit", "pad")
    wanted = convert(tmp_path, "wanted", "--fit", "pad", "--grey", "--frame-stride", 5)
    clip = read_clip(whole, MANIFEST, None)
    assert clip.frames.shape == open_shards(wanted).clip(0).shape
    assert np.abs(clip.frames.astype(int) - open_shards(wanted).clip(0)).max() <= 2
    assert "from shards with padded to 32x32, color, every frame to padded to 32x32, grey" in clip.prepared
    third = convert(tmp_path, "third", "--frame-stride", 3)
    with pytest.raises(ValueError, match="has every 3rd frame of its videos, but the model was trained on every 5th"):
        read_clip(third, MANIFEST, None)
    with ShardWriter(tmp_path / "plain") as writer:  # tells nothing: taken as it is
        writer.add("a", frames(6)[:, :64, :64])
    assert len(read_clip(tmp_path / "plain", MANIFEST, None).frames) == 6


def test_too_short_after_the_stride(tmp_path):
    write_video(tmp_path / "a.mp4", frames(8), fps=10)
    with pytest.raises(ValueError, match="too short: it has 1 frames, 10 apart, but the model needs 2"):
        read_clip(tmp_path / "a.mp4", replace(MANIFEST, frame_stride=2), None)
