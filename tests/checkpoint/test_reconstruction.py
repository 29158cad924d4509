"""Imported autoencoders reconstruct training frames, which sets the range of their input."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raypipe import checkpoint
from raypipe.checkpoint import diffusers_folder
from raypipe.checkpoint.__main__ import main
from raypipe.checkpoint.reconstruction import NUM_FRAMES, open_training_shards, sample_frames
from raypipe.checkpoint.reference import take_autoencoder
from raypipe.convert_to_h5 import main as convert
from raypipe.data.frames import to_float
from raypipe.models.autoencoder import Autoencoder, build_network
from raypipe.models.kl import AutoencoderKL
from tests.videotools import save_frames

ARGUMENTS = {"widths": [16], "num_res_blocks": 1, "channels": 3, "groups": 4}
LARGE, GAIN = 1e3, 200.0


def clip(seed: int, frames: int = 9) -> np.ndarray:
    """Smooth dark frames, whose values fill the range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 16
    phase = rng.uniform(0, 6, (frames, 1, 1, 3))
    wave = np.sin(3 * x[None, :, :, None] + 2 * y[None, :, :, None] + phase)
    return np.asarray(255 * (wave + 1) / 2, np.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        for i in range(12 if split == "train" else 1):
            save_frames(root / "frames" / split / f"c{i}", clip(i, 4 + i))
    assert convert(["--data_dir", str(root / "frames"), "--out_dir", str(root / "shards"), "--image_size", "16"]) == 0
    return root / "shards"


def copying_network(lowest: float, error: float = 0.0) -> nn.Module:
    """A kl autoencoder, with weights by hand, that returns max(frame, lowest) + error.

    The residual blocks and the attention add nothing. The four channels of a group hold plus and minus a color and plus
    and minus LARGE, so that the normalization only divides by a constant. SiLU of a large multiple is a maximum.
    """
    network = build_network("kl", ARGUMENTS)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.quant_conv.weight[:3, :3, 0, 0] = network.post_quant_conv.weight[:, :, 0, 0] = torch.eye(3)
        for half, low, shift in ((network.encoder, lowest, 0.0), (network.decoder, -10.0, error)):
            for color in range(3):
                half.conv_in.weight[4 * color, color, 1, 1] = 1
                half.conv_in.weight[4 * color + 3, color, 1, 1] = -1
                half.conv_in.bias[4 * color + 1], half.conv_in.bias[4 * color + 2] = LARGE, -LARGE
                half.conv_norm_out.weight[4 * color] = GAIN * LARGE / 2**0.5  # the standard deviation is LARGE / sqrt 2
                half.conv_norm_out.bias[4 * color] = -GAIN * low
                half.conv_out.weight[color, 4 * color, 1, 1] = 1 / GAIN
                half.conv_out.bias[color] = low + shift
    return network.eval()


def save_diffusers_folder(network: nn.Module, folder: Path) -> Path:
    assert isinstance(network, AutoencoderKL)
    diffusers_folder.write(folder, diffusers_folder.config_of(network), network.state_dict())
    return folder


def test_the_range_with_the_better_psnr_is_used(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = copying_network(lowest=0.0, error=0.01)
    save_diffusers_folder(trained, tmp_path / "a")
    assert main(["import", str(tmp_path / "a"), "--out", str(tmp_path / "model"), "--dataset", str(shards)]) == 0
    out = capsys.readouterr().out
    meta = checkpoint.read_meta(tmp_path / "model")
    assert meta.input_range == (0.0, 1.0)
    assert f"{meta.extra['psnr']:.1f} dB with input in [0, 1]" in out and "WARNING" not in out
    assert meta.extra["psnr"] > 20 and meta.extra["psnr_frames"] == NUM_FRAMES

    frames = sample_frames(open_training_shards(str(shards)))
    loaded = checkpoint.load_autoencoder(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(loaded.encode(frames), trained.encode((frames + 1) / 2))
        decoded = loaded.decode(loaded.encode(frames))
        mse = (decoded - frames).square().mean()
        assert torch.allclose(loaded.reconstruct(frames).frames.clamp(-1, 1), decoded, atol=1e-5)
    assert 10 * torch.log10(4 / mse).item() == pytest.approx(meta.extra["psnr"], abs=1e-3)

    assert main(["import", str(tmp_path / "a"), "--out", str(tmp_path / "plain")]) == 0
    assert checkpoint.read_meta(tmp_path / "plain").input_range is None
    assert checkpoint.weights_hash(tmp_path / "plain") == checkpoint.weights_hash(tmp_path / "model")
    assert checkpoint.autoencoder_hash(tmp_path / "plain") != checkpoint.autoencoder_hash(tmp_path / "model")


def test_a_network_for_the_usual_range_keeps_it(shards: Path, tmp_path: Path) -> None:
    given = save_diffusers_folder(copying_network(lowest=-1.0, error=0.01), tmp_path / "a")
    take_autoencoder(given, tmp_path / "model", open_training_shards(str(shards / "train")))
    meta = checkpoint.read_meta(tmp_path / "model")
    assert meta.input_range is None
    assert meta.extra["psnr"] == pytest.approx(20 * np.log10(2 / 0.01), abs=1)


def test_a_low_psnr_says_what_to_check(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_diffusers_folder(copying_network(lowest=0.0, error=0.5), tmp_path / "a")
    assert main(["import", str(tmp_path / "a"), "--out", str(tmp_path / "model"), "--dataset", str(shards)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]
    assert "below 20 dB: check that" in line


def test_bad_datasets_are_told_in_one_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = build_network("vqgan", {"num_embeddings": 8, "ch": 32, "ch_mult": [1] * 6, "num_res_blocks": 1})
    torch.save(network.state_dict(), tmp_path / "a.pt")
    (tmp_path / "empty").mkdir()
    for dataset, message in (
        (tmp_path / "nowhere", "--dataset: "),
        (tmp_path / "empty", "no shards in this folder"),
        (shards, "multiples of 32, not [8, 3, 16, 16]"),
    ):
        arguments = ["import", str(tmp_path / "a.pt"), "--out", str(tmp_path / "model"), "--dataset", str(dataset)]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "empty"]


def test_frames_are_taken_from_all_clips(shards: Path) -> None:
    opened = open_training_shards(str(shards))
    frames = sample_frames(opened)
    assert len(frames) == NUM_FRAMES
    for i in range(len(opened)):
        own = to_float(torch.from_numpy(opened.clip(i)))
        assert any(torch.equal(frame, other) for frame in frames for other in own)


def test_the_range_survives_saving(tmp_path: Path) -> None:
    autoencoder = Autoencoder(build_network("conv", {"width": 8}), (0.0, 1.0))
    checkpoint.save_autoencoder(tmp_path / "a", autoencoder)
    assert checkpoint.load_autoencoder(tmp_path / "a").input_range == (0.0, 1.0)
    meta = checkpoint.read_meta(tmp_path / "a")
    assert checkpoint.Meta.from_json(meta.to_json()) == meta
    assert dataclasses.replace(meta, input_range=None) != meta
