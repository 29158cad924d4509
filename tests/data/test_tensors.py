"""Frames as tensors, augmentation, batches and the latent cache."""

import colorsys

import numpy as np
import pytest
import torch

from raypipe.data.augment import Augmentation, augment, draw
from raypipe.data.dataset import WindowBatches, warn_of_short_clips
from raypipe.data.frames import to_float, to_uint8
from raypipe.data.latents import cache_latents, finish, open_latents
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.data.windows import Sampler, WindowIndex


@pytest.fixture
def shards(tmp_path):
    rng = np.random.default_rng(0)
    with ShardWriter(tmp_path / "train", clips_per_shard=3) as writer:
        for i in range(8):
            writer.add(f"clip{i}", rng.integers(0, 256, (int(rng.integers(5, 12)), 8, 8, 3), np.uint8))
    return open_shards(tmp_path / "train")


def test_frames_and_tensors_invert_each_other():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(2, 1, 1, 3)
    floats = to_float(levels)
    assert floats.shape == (2, 3, 16, 16)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), levels)
    assert to_uint8(torch.full((3, 1, 1), 1.7)).flatten().tolist() == [255] * 3
    with pytest.raises(ValueError, match="must be uint8"):
        to_float(floats)
    with pytest.raises(ValueError, match="must be floating point"):
        to_uint8(levels)


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


def test_batches_are_the_windows_of_the_sampler(shards):
    index = WindowIndex(shards.lengths, 3, 2)
    sampler = Sampler(len(index), 4, seed=5)
    batches = WindowBatches(shards, 3, 2, sampler)
    for step in range(2 * sampler.steps_per_epoch):
        part = sampler.batch(step)
        clips, starts = index.locate(part.windows)
        wanted = np.stack([shards.clip(c)[s : s + 5 : 2] for c, s in zip(clips, starts, strict=True)])
        batch = batches.batch(step)
        assert torch.equal(batch.data, torch.from_numpy(wanted))
        assert batch.clips.tolist() == clips.tolist()
        assert (batch.total, batch.offset, batch.step) == (part.total, part.offset, step)
    with pytest.raises(ValueError, match="sampler: must be of"):
        WindowBatches(shards, 3, 1, sampler)


def test_clips_that_are_too_short_are_named(shards, caplog):
    lengths = shards.lengths.tolist()
    warn_of_short_clips(shards, 1)
    assert not caplog.messages
    frames = min(lengths) + 1
    warn_of_short_clips(shards, frames, named=1)
    short = [i for i, length in enumerate(lengths) if length < frames]
    (message,) = caplog.messages
    assert f"{len(short)} of {len(shards)} clips are left out: shorter than {frames} frames" in message
    assert f"({shards.names[short[0]]} ({lengths[short[0]]})" in message
    assert len(short) == 1 or message.endswith(", ...)")


def shrink(frames):
    return frames[:, ::4, ::4].transpose(0, 3, 1, 2).astype(np.float32) / 100


def encode(frames):
    assert 0 < len(frames) <= 7
    return shrink(frames)


def test_the_cache_mirrors_the_frames(shards, tmp_path):
    calls = []
    folder = tmp_path / "latents"
    cache_latents(shards, folder, encode, 7, "k1", lambda done, total: calls.append((done, total)))
    finish(shards, folder, "k1")
    latents = open_latents(folder, "k1")
    assert (latents.names, latents.dtype, latents.frame_shape) == (shards.names, np.float16, (3, 2, 2))
    assert latents.shard_names == shards.shard_names
    for i in range(len(shards)):
        np.testing.assert_array_equal(latents.clip(i), shrink(shards.clip(i)).astype(np.float16))
    assert calls[-1] == (shards.lengths.sum(), shards.lengths.sum())
    batch = WindowBatches(latents, 3, 1, Sampler(len(WindowIndex(latents.lengths, 3)), 4)).batch(0).data
    assert (batch.dtype, batch.shape) == (torch.float32, (4, 3, 3, 2, 2))
    with pytest.raises(ValueError, match="made under the key 'k1', not 'k2'"):
        open_latents(folder, "k2")


def test_parts_make_the_same_cache_and_finished_shards_are_kept(shards, tmp_path):
    cache_latents(shards, tmp_path / "a", encode, 7, "k")
    cache_latents(shards, tmp_path / "b", encode, 7, "k", part=(0, 2))
    with pytest.raises(ValueError, match=r"shard_0002\.hdf5: not encoded yet"):
        finish(shards, tmp_path / "b", "k")
    with pytest.raises(ValueError, match="no finished latent cache"):
        open_latents(tmp_path / "b", "k")
    cache_latents(shards, tmp_path / "b", encode, 7, "k", part=(1, 2))
    calls = []
    cache_latents(shards, tmp_path / "b", lambda _: pytest.fail("encoded again"), 7, "k", lambda *a: calls.append(a))
    assert calls[-1] == (shards.lengths.sum(), shards.lengths.sum())
    for folder in "ab":
        finish(shards, tmp_path / folder, "k")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_stale_cache_is_encoded_anew(shards, tmp_path):
    cache_latents(shards, tmp_path / "a", encode, 7, "old")
    finish(shards, tmp_path / "a", "old")
    cache_latents(shards, tmp_path / "a", encode, 7, "new")
    finish(shards, tmp_path / "a", "new")
    assert open_latents(tmp_path / "a", "new").key == "new"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: encode(x) * 1e6, "beyond float16"),
        (lambda x: encode(x) * np.nan, "beyond float16"),
        (lambda x: encode(x)[1:], r"must be \[7, C, h, w\]"),
    ],
)
def test_bad_latents_are_refused(shards, tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        cache_latents(shards, tmp_path / "a", bad, 7, "k")
    assert list((tmp_path / "a").glob("*")) == []
