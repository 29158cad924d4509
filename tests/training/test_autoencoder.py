"""The autoencoder in training, on the tiny experiment's frames."""

import numpy as np
import pytest
import torch

from raypipe import checkpoint, config
from raypipe.data.frames import to_float
from raypipe.data.shards import ShardWriter, open_shards
from raypipe.training.autoencoder import AutoencoderTraining, backgrounds

CPU = torch.device("cpu")
STEPS = 60


def begun(sources, **values):
    experiment = config.replace(sources.experiment, **{"autoencoder.steps": STEPS, **values})
    return AutoencoderTraining(experiment, sources.frames("train"), device=CPU)


def losses(training, stop):
    found = []
    training.advance(stop, found.append, every=1)
    return [progress.loss for progress in found]


@pytest.fixture(scope="module")
def trained(tiny_data):
    training = begun(tiny_data)
    return training, losses(training, STEPS)


def frames_of(sources):
    shards = sources.frames("train")
    return to_float(torch.from_numpy(np.concatenate([shards.clip(i) for i in range(len(shards))])))


def test_training_lowers_the_loss(trained):
    training, found = trained
    assert training.step == STEPS
    assert len(found) == STEPS
    assert np.mean(found[-10:]) < 0.5 * np.mean(found[:3])


def test_latents_have_unit_scale_on_training_frames(trained, tiny_data):
    training, _ = trained
    training.module.eval()
    with torch.no_grad():
        latents = training.module.encode(frames_of(tiny_data))
    assert latents.std((0, 2, 3)).tolist() == pytest.approx([1.0] * 4, rel=0.05)


def test_the_scale_is_measured_at_the_last_step_alone(tiny_data, trained):
    training = begun(tiny_data)
    losses(training, STEPS - 1)
    assert training.module.scale.tolist() == [1.0] * 4
    losses(training, STEPS)
    assert torch.equal(training.module.scale, trained[0].module.scale)
    assert training.module.scale.tolist() != [1.0] * 4


def test_a_restored_training_goes_on_bit_for_bit(tiny_data, trained, tmp_path):
    whole, expected = trained
    first = begun(tiny_data)
    assert losses(first, 25) == expected[:25]
    first.save(tmp_path / "autoencoder")
    torch.manual_seed(99)
    second = begun(tiny_data)
    second.restore(tmp_path / "autoencoder")
    assert second.step == 25
    assert losses(second, STEPS) == expected[25:]
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(second.module.state_dict()[name], tensor), name


def test_what_is_saved_is_what_was_trained(tiny_data, trained, tmp_path):
    training, _ = trained
    training.save(tmp_path / "autoencoder")
    loaded = checkpoint.load_autoencoder(tmp_path / "autoencoder")
    frames = frames_of(tiny_data)[:4]
    training.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(frames), training.module.encode(frames))
        assert loaded.decode(loaded.encode(frames)).shape == frames.shape
    meta = checkpoint.read_meta(tmp_path / "autoencoder")
    assert (meta.step, meta.kind, meta.settings.steps, meta.latent_channels) == (STEPS, "autoencoder", STEPS, 4)


def test_the_seed_decides(tiny_data):
    assert losses(begun(tiny_data), 3) == losses(begun(tiny_data), 3)
    assert losses(begun(tiny_data), 3) != losses(begun(tiny_data, **{"train.random_seed": 1}), 3)


def test_a_quantized_autoencoder_trains_too(tiny_data):
    values = {"autoencoder.type": "vqvae", "autoencoder.num_embeddings": 16, "autoencoder.steps": 2}
    training = begun(tiny_data, **values)
    assert np.isfinite(losses(training, 2)).all()
    assert (training.module.scale > 0).all() and training.module.scale.tolist() != [1.0] * 4


def test_backgrounds_are_medians_over_the_whole_clip(tmp_path):
    rng = np.random.default_rng(0)
    still = rng.integers(0, 256, (16, 16, 3), np.uint8)
    passing = np.repeat(still[None], 20, axis=0)
    for t in range(20):  # a bright column that wanders on covers no pixel in more than two frames
        passing[t, :, t % 16] = 255
    ramp = np.broadcast_to(np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) * 10, (5, 16, 16, 3))
    single = rng.integers(0, 256, (1, 16, 16, 3), np.uint8)
    with ShardWriter(tmp_path) as writer:
        for name, clip in (("passing", passing), ("ramp", ramp), ("single", single)):
            writer.add(name, clip)
    found = backgrounds(open_shards(tmp_path))
    assert found.shape == (3, 16, 16, 3) and found.dtype == torch.uint8
    assert np.array_equal(found[0].numpy(), still)
    assert (found[1] == 20).all()
    assert np.array_equal(found[2].numpy(), single[0])
