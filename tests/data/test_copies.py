"""Augmented copies of clips: their frames, their place in the latent cache, and who is trained on them."""

import pickle

import numpy as np
import pytest

from raypipe import checkpoint, config
from raypipe.data.copies import Copies
from raypipe.data.latents import cache_latents, check_latents, encode_shard, finish, missing_shards, open_latents
from raypipe.data.splits import SPLITS
from raypipe.data.windows import WindowIndex
from raypipe.forecast.windows import forecast_windows, true_frames
from raypipe.search.pipeline import few_windows
from raypipe.training.component import ComponentTraining
from raypipe.workspace.dataset import ExperimentData, frame_encoder
from raypipe.workspace.layout import ParentModels

CHANGES = {
    (False, False): lambda clip: clip,
    (True, False): lambda clip: clip[:, :, ::-1],
    (False, True): lambda clip: clip[::-1],
    (True, True): lambda clip: clip[::-1, :, ::-1],
}


def kinds(flip, reverse):
    """The changes of the copies of each clip, the clip itself first."""
    return [kind for kind in CHANGES if kind[0] <= flip and kind[1] <= reverse]


@pytest.mark.parametrize(("flip", "reverse"), [(True, False), (False, True), (True, True)])
def test_each_clip_is_followed_by_its_copies(shards, flip, reverse):
    copies = pickle.loads(pickle.dumps(Copies(shards, flip=flip, reverse=reverse)))
    wanted = [CHANGES[kind](shards.clip(i)) for i in range(len(shards)) for kind in kinds(flip, reverse)]
    assert len(copies) == len(wanted) == len(set(copies.names))
    for i, clip in enumerate(wanted):
        np.testing.assert_array_equal(copies.clip(i), clip)
        np.testing.assert_array_equal(copies.frames(i, [3, 0, 1]), clip[[3, 0, 1]])
    index = WindowIndex(copies.lengths, 3, 2)
    clips, starts = index.locate(np.random.default_rng(0).permutation(len(index)))
    expected = np.stack([wanted[c][s : s + 5 : 2] for c, s in zip(clips, starts, strict=True)])
    np.testing.assert_array_equal(copies.windows(clips, starts, 3, 2), expected)


def shrink(frames):
    return frames[:, ::4, ::4].transpose(0, 3, 1, 2).astype(np.float32) / 100


def test_a_cache_of_copies_goes_on_where_it_was_interrupted(shards, tmp_path):
    copies, folder = Copies(shards, flip=True, reverse=False), tmp_path / "latents"
    encode_shard(copies, 0, folder, shrink, 7, "k")
    assert missing_shards(copies, folder, "k") == [1, 2]
    assert missing_shards(shards, folder, "k") == [0, 1, 2]  # without the copies, it would be another cache
    begun = (folder / "shard_0001.hdf5").stat()
    cache_latents(copies, folder, shrink, 7, "k")
    finish(copies, folder, "k")
    assert (folder / "shard_0001.hdf5").stat().st_mtime_ns == begun.st_mtime_ns
    latents = open_latents(folder, "k")
    assert latents.names == copies.names and len(latents) == 16
    for i in range(8):
        for place, clip in ((2 * i, shards.clip(i)), (2 * i + 1, shards.clip(i)[:, :, ::-1])):
            np.testing.assert_array_equal(latents.clip(place), shrink(clip).astype(np.float16))
    check_latents(copies, latents, shrink, 20, np.random.default_rng(0))


def augmented(data, **values):
    experiment = config.replace(data.experiment, **{f"dataset.{name}": value for name, value in values.items()})
    return ExperimentData(experiment, data.workspace)


def test_components_are_trained_on_the_copies_and_scored_without(own_data):
    data = augmented(own_data, horizontal_flip=True, time_reversal=True)
    assert len(data.encoded_frames("train")) == 4 * len(own_data.frames("train"))
    for split in SPLITS:
        assert (data.cache_key(split) == own_data.cache_key(split)) == (split != "train")
    with pytest.raises(ValueError, match=r"train: has the key .* delete"):
        data.latents("train")  # it holds the clips alone
    encode = frame_encoder(checkpoint.load_autoencoder(data.workspace.autoencoder))
    cache_latents(data.encoded_frames("train"), data.cache("train"), encode, 16, data.cache_key("train"))
    finish(data.encoded_frames("train"), data.cache("train"), data.cache_key("train"))
    assert len(data.latents("val")) == len(own_data.frames("val"))
    windows = forecast_windows(data.latents("train"), data.experiment, 40, 0)
    true, last = true_frames(data, "train", windows)
    latents = encode(true.flatten(0, 1).numpy())
    np.testing.assert_allclose(latents, windows.truth.flatten(0, 1).numpy(), atol=1e-2)
    np.testing.assert_allclose(encode(last.numpy()), windows.last.numpy(), atol=1e-2)
    training = ComponentTraining(data.experiment, data, ParentModels())
    assert len(training._batches.index) == 4 * 6 * (10 - 3 + 1)
    training.advance(2, lambda progress: None)


def test_frames_that_are_encoded_in_every_step_are_flipped_there(tiny_data):
    data = ExperimentData(
        config.replace(tiny_data.experiment, **{"dataset.horizontal_flip": True, "latents.mode": "off"}),
        tiny_data.workspace,
    )
    assert len(data.training_shards()) == 6 and data.cache_key("train") == tiny_data.cache_key("train")


def test_flipped_copies_are_advised_where_data_are_few_and_count():
    few = config.replace(config.Experiment(), **{"search.joint.refit_steps": 2000})
    assert "--dataset.horizontal_flip true" in few_windows([26] * 42, few)
    flipped = config.replace(few, **{"dataset.horizontal_flip": True})
    assert "--dataset.horizontal_flip" not in few_windows([26] * 42, flipped)
    assert few_windows([26] * 84, flipped) is None
