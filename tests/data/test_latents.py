"""The latent cache: what it holds, what is kept, what is refused, and the comparison with encoding anew."""

import h5py
import numpy as np
import pytest

from raypipe.common.errors import ConfigError
from raypipe.data.batches import WindowBatches
from raypipe.data.latents import (
    TOLERANCE,
    cache_latents,
    check_latents,
    encode_shard,
    finish,
    missing_shards,
    open_latents,
)
from raypipe.data.windows import Sampler, WindowIndex


def shrink(frames):
    return frames[:, ::4, ::4].transpose(0, 3, 1, 2).astype(np.float32) / 100


def encode(frames):
    assert 0 < len(frames) <= 7
    return shrink(frames)


@pytest.fixture
def folder(shards, tmp_path):
    cache_latents(shards, tmp_path / "latents", encode, 7, "k1")
    finish(shards, tmp_path / "latents", "k1")
    return tmp_path / "latents"


def test_the_cache_mirrors_the_frames(shards, folder):
    latents = open_latents(folder, "k1")
    assert (latents.names, latents.dtype, latents.frame_shape) == (shards.names, np.float16, (3, 2, 2))
    assert latents.shard_names == shards.shard_names
    for i in range(len(shards)):
        np.testing.assert_array_equal(latents.clip(i), shrink(shards.clip(i)).astype(np.float16))
    batch = WindowBatches(latents, 3, 1, Sampler(len(WindowIndex(latents.lengths, 3)), 4)).batch(0).data
    assert str(batch.dtype) == "torch.float32" and batch.shape == (4, 3, 3, 2, 2)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_batches_are_full_but_the_last_and_all_frames_are_told(shards, tmp_path, batch_size):
    sizes, told = [], []

    def counting(frames):
        sizes.append(len(frames))
        return shrink(frames)

    encode_shard(shards, 1, tmp_path / "a", counting, batch_size, "k", told.append)
    total = int(shards.lengths[shards.shard_of == 1].sum())
    assert sizes == told == [batch_size] * (total // batch_size) + [total % batch_size] * (total % batch_size > 0)


def test_shards_in_any_order_make_the_same_cache_and_finished_ones_are_kept(shards, folder, tmp_path):
    other = tmp_path / "b"
    encode_shard(shards, 2, other, encode, 7, "k1")
    assert missing_shards(shards, other, "k1") == [0, 1]
    assert missing_shards(shards, other, "another") == [0, 1, 2]
    with pytest.raises(ValueError, match=r"shard_0001\.hdf5: not encoded yet"):
        finish(shards, other, "k1")
    with pytest.raises(ValueError, match="no finished latent cache"):
        open_latents(other, "k1")
    before = (other / "shard_0003.hdf5").stat()
    for shard in (1, 0):
        encode_shard(shards, shard, other, encode, 7, "k1")
    cache_latents(shards, other, lambda _: pytest.fail("encoded again"), 7, "k1")
    (other / ".shard_0001.hdf5.123.tmp").write_bytes(b"of a worker that was killed")
    (other / "shard_0009.hdf5").write_bytes((other / "shard_0001.hdf5").read_bytes())
    finish(shards, other, "k1")
    after = (other / "shard_0003.hdf5").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in other.iterdir()) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


@pytest.mark.parametrize("damage", [lambda raw: raw[:-100], lambda raw: raw[:50], lambda raw: b""])
def test_a_torn_shard_is_not_taken_for_a_finished_one(shards, folder, damage):
    path = folder / "shard_0002.hdf5"
    path.write_bytes(damage(path.read_bytes()))
    assert missing_shards(shards, folder, "k1") == [1]


def test_a_cache_of_another_autoencoder_or_other_data_is_refused(shards, folder):
    with pytest.raises(ValueError, match=r"latents: has the key 'k1', not 'k2', .*delete .*latents"):
        open_latents(folder, "k2")
    with h5py.File(folder / "shard_0003.hdf5", "a") as file:
        file.attrs["key"] = "k0"
    latents = open_latents(folder, "k1")
    with pytest.raises(ValueError, match=r"shard_0003\.hdf5"):
        latents.clip(len(latents) - 1)


def test_a_stale_cache_is_encoded_anew(shards, folder):
    cache_latents(shards, folder, encode, 7, "new")
    finish(shards, folder, "new")
    assert open_latents(folder, "new").key == "new"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda x: encode(x) * 1e6, "not finite in float16"),
        (lambda x: encode(x) * np.nan, "not finite in float16"),
        (lambda x: encode(x)[1:], r"must be \[7, C, h, w\]"),
    ],
)
def test_bad_latents_are_refused(shards, tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        cache_latents(shards, tmp_path / "a", bad, 7, "k")
    assert list((tmp_path / "a").glob("*")) == []


def check(shards, folder, encode, count=7, seed=0):
    check_latents(shards, open_latents(folder, "k1"), encode, count, np.random.default_rng(seed))


def test_what_is_cached_agrees_with_encoding_anew(shards, folder):
    for seed in range(5):
        check(shards, folder, encode, seed=seed)
    check(shards, folder, lambda frames: encode(frames) * (1 + 0.9 * TOLERANCE))
    with pytest.raises(ConfigError, match="the cached latents differ from the frame encoded again by"):
        check(shards, folder, lambda frames: encode(frames) * (1 + 1.1 * TOLERANCE))
    with pytest.raises(ConfigError, match="cached latents differ"):
        check(shards, folder, lambda frames: encode(frames) * np.nan)
    with pytest.raises(ConfigError, match=r"cached \[3, 2, 2\], but encoded again \[2, 2, 2\]"):
        check(shards, folder, lambda frames: encode(frames)[:, 1:])


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_latents_of_other_frames_are_named_whichever_shard_they_are_in(shards, folder, shard):
    """As many frames as there are shards see every shard."""
    (folder / f"shard_000{shard + 1}.hdf5").unlink()
    encode_shard(shards, shard, folder, lambda frames: encode(np.roll(frames, 1, axis=0)), 7, "k1")
    finish(shards, folder, "k1")
    for seed in range(5):  # seven frames of three shards: two at least of each
        with pytest.raises(
            ConfigError, match=rf"shard_000{shard + 1}\.hdf5: clip clip\d, frame \d+: .*delete .*latents"
        ):
            check(shards, folder, encode, seed=seed)
