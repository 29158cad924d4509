"""Augmentation against formulas computed by hand and by colorsys, on float and uint8 clips."""

import colorsys

import numpy as np
import pytest
import torch

from raypipe.data.augment import Augmentation, augment, draw
from raypipe.data.frames import to_float, to_uint8


def one(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, flip=False):
    return Augmentation(torch.tensor([flip]), torch.tensor([[brightness, contrast, saturation, hue]]))


@pytest.fixture
def clip():
    return torch.rand(1, 3, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def test_neutral_augmentation_changes_nothing(clip):
    torch.testing.assert_close(augment(clip, one()), clip)
    torch.testing.assert_close(augment(clip, one(hue=1.0)), clip)
    torch.testing.assert_close(augment(clip, one(flip=True)), clip.flip(-1))


def test_brightness_contrast_and_saturation_follow_their_formulas(clip):
    rgb = (clip + 1) / 2
    grey = 0.299 * rgb[:, :, :1] + 0.587 * rgb[:, :, 1:2] + 0.114 * rgb[:, :, 2:]
    wanted = {
        "brightness": rgb * 1.1,
        "contrast": grey.mean() + 1.1 * (rgb - grey.mean()),
        "saturation": grey + 1.1 * (rgb - grey),
    }
    for name, value in wanted.items():
        torch.testing.assert_close((augment(clip, one(**{name: 1.1})) + 1) / 2, value.clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("turns", [-0.25, 0.1, 0.25])
def test_hue_agrees_with_colorsys(clip, turns):
    got = ((augment(clip, one(hue=turns)) + 1) / 2).movedim(2, -1).reshape(-1, 3)
    for before, after in zip(((clip + 1) / 2).movedim(2, -1).reshape(-1, 3).tolist(), got.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value), abs=1e-5)


def test_draws_are_seeded_within_range_and_slice_like_the_batch():
    drawn = draw(1000, torch.Generator().manual_seed(1))
    assert 0.4 < drawn.flip.float().mean() < 0.6
    low, high = drawn.jitter.min(0).values, drawn.jitter.max(0).values
    torch.testing.assert_close(low, torch.tensor([0.9, 0.9, 0.9, -0.25]), atol=0.01, rtol=0)
    torch.testing.assert_close(high, torch.tensor([1.1, 1.1, 1.1, 0.25]), atol=0.01, rtol=0)
    same = draw(1000, torch.Generator().manual_seed(1), jitter=False)
    assert torch.equal(same.flip, drawn.flip)
    frames = torch.rand(4, 2, 3, 8, 8) * 2 - 1
    drawn = drawn.part(0, 4)
    halves = [augment(frames[i : i + 2], drawn.part(i, 2)) for i in (0, 2)]
    torch.testing.assert_close(torch.cat(halves), augment(frames, drawn))
    assert augment(frames, drawn).abs().max() <= 1
    with pytest.raises(ValueError, match=r"frames: must be \[4, T, 3, H, W\]"):
        augment(frames[:3], drawn)


def stored(clips=1, frames=3, seed=0):
    """Frames as shards hold them: uint8 [b, T, H, W, 3]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (clips, frames, 4, 5, 3), np.uint8))


def by_hand(frames, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, flip=False):
    """One clip, uint8 [T, H, W, 3], pixel by pixel in Python's own floats."""
    clip = (frames[:, :, ::-1] if flip else frames).tolist()

    def clamp(pixel):
        return [min(1.0, max(0.0, value)) for value in pixel]

    def grey(pixel):
        return 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]

    flat = [clamp([brightness * value / 255 for value in pixel]) for image in clip for row in image for pixel in row]
    mean = sum(map(grey, flat)) / len(flat)
    out = []
    for pixel in flat:
        pixel = clamp([mean + contrast * (value - mean) for value in pixel])
        pixel = clamp([grey(pixel) + saturation * (value - grey(pixel)) for value in pixel])
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        out.append(colorsys.hsv_to_rgb((h + hue) % 1, s, v))
    return 255 * np.array(out).reshape(frames.shape)


SETTINGS = [
    {"flip": True},
    {"brightness": 1.1},
    {"brightness": 0.9},
    {"contrast": 1.1},
    {"contrast": 0.9},
    {"saturation": 1.1},
    {"saturation": 0.9},
    {"hue": 0.25},
    {"hue": -0.25},
    {"brightness": 1.07, "contrast": 0.93, "saturation": 1.1, "hue": -0.13, "flip": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_bytes_and_floats_follow_the_formulas(settings):
    frames = stored()
    wanted = by_hand(frames[0].numpy(), **settings)
    bytes_out = augment(frames, one(**settings))
    assert (bytes_out.dtype, bytes_out.shape) == (torch.uint8, frames.shape)
    assert np.abs(bytes_out[0].numpy() - wanted).max() <= 0.501  # rounded once, at the end
    floats_out = (augment(to_float(frames), one(**settings))[0].movedim(1, -1).numpy() + 1) * 127.5
    np.testing.assert_allclose(floats_out, wanted, atol=2e-3)  # of 255
    assert np.abs(wanted - frames[0].numpy()).max() > 1


def test_grey_black_and_white_have_no_hue_to_turn():
    levels = torch.arange(0, 256, 5, dtype=torch.uint8).view(1, 1, 4, 13, 1).expand(-1, -1, -1, -1, 3)
    assert torch.equal(augment(levels, one(hue=0.2)), levels)


@pytest.mark.parametrize("prepare", [lambda x: x, to_float], ids=["uint8", "float"])
def test_every_frame_of_a_clip_is_changed_alike_and_clips_are_not(prepare):
    still = stored(4, 1).expand(-1, 6, -1, -1, -1).contiguous()
    same = still[:1].expand(4, -1, -1, -1, -1).contiguous()
    drawn = draw(4, torch.Generator().manual_seed(3))
    for frames in (still, same):
        out = augment(prepare(frames), drawn)
        assert torch.equal(out, out[:, :1].expand_as(out))
    assert len({tuple(clip.flatten().tolist()) for clip in out}) == 4


@pytest.mark.parametrize("prepare", [lambda x: x, to_float], ids=["uint8", "float"])
def test_the_generator_decides_and_ranks_get_their_part_of_the_whole(prepare):
    frames = prepare(stored(6))
    drawn, again, other = (draw(6, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    whole = augment(frames, drawn)
    assert torch.equal(augment(frames, again), whole)
    assert not torch.equal(augment(frames, other), whole)
    for world_size in (2, 3, 6):
        share = 6 // world_size
        parts = [augment(frames[r * share : (r + 1) * share], drawn.part(r * share, share)) for r in range(world_size)]
        assert torch.equal(torch.cat(parts), whole)


def test_bytes_are_the_rounded_floats():
    frames, drawn = stored(5), draw(5, torch.Generator().manual_seed(0))
    assert torch.equal(augment(frames, drawn), to_uint8(augment(to_float(frames), drawn)))
    with pytest.raises(ValueError, match=r"frames: must be \[5, T, 3, H, W\]"):
        augment(frames[:4], drawn)
    with pytest.raises(ValueError, match="frames: must be uint8"):
        augment(frames[..., :2], drawn)
