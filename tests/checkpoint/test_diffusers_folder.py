"""Autoencoders of diffusers, such as sd-vae-ft-mse, from their folder and back."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raypipe import checkpoint, config
from raypipe.checkpoint.__main__ import main
from raypipe.models.autoencoder import Autoencoder
from raypipe.models.components import build_component
from raypipe.models.kl import AutoencoderKL

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
CONFIG = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.4.2",
    "act_fn": "silu",
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 3,
    "sample_size": 256,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
}


def network() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(4, (16, 32), 1, 8).eval()


def state(*, old: bool = False, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    found = {name: tensor.to(dtype) for name, tensor in network().state_dict().items()}
    if old:
        for new, before in OLD.items():
            found = {name.replace(f".{new}.", f".{before}."): tensor for name, tensor in found.items()}
    return found


def make(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return folder


@torch.no_grad()
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_there_and_back(old: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    given = make(tmp_path / "vae", state(old=old, dtype=dtype))
    assert main(["import", str(given), "--out", str(tmp_path / "model")]) == 0
    found = checkpoint.load_autoencoder(tmp_path / "model")
    frames = torch.rand(1, 3, 16, 16) * 2 - 1
    expected = network()
    expected.load_state_dict(state(dtype=dtype))
    torch.testing.assert_close(found.encode(frames), expected.encode(frames))
    assert found.scale.tolist() == [1.0] * 4
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "back")]) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == CONFIG
    ours, theirs = (load_file(f / "diffusion_pytorch_model.safetensors") for f in (tmp_path / "back", given))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == dtype for name in theirs)


def test_a_component_file_may_embed_one(tmp_path: Path) -> None:
    """Old names of its attention come back as they were."""
    model = config.Model(num_input_frames=2, inner_dim=16, num_heads=2, time_input=False)
    component = build_component("flow", model, 4).state_dict()
    wide = AutoencoderKL(4, (32, 64), 1).state_dict()
    content = {
        **{name.replace("network.", "vector_field_regressor."): tensor for name, tensor in component.items()},
        **{f"ae.{name}".replace(".to_q.", ".query."): tensor for name, tensor in wide.items()},
    }
    torch.save({"model": content}, tmp_path / "f.pth")
    assert main(["import", str(tmp_path / "f.pth"), "--out", str(tmp_path / "f"), "--num-heads", "2"]) == 0
    assert checkpoint.read_meta(tmp_path / "f" / "autoencoder").network == "kl"
    assert main(["export", str(tmp_path / "f"), "--out", str(tmp_path / "back.pth")]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert list(back) == list(content)
    assert all(torch.equal(back[name], content[name]) for name in content)


def test_one_of_ours_is_written_as_diffusers_reads_it(tmp_path: Path) -> None:
    checkpoint.save_autoencoder(tmp_path / "model", Autoencoder(network()))
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "vae")]) == 0
    written = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert {**CONFIG, **written} == CONFIG
    assert load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors").keys() == state().keys()


def lacking(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state().items() if key != name}


@pytest.mark.parametrize(
    ("changes", "tensors", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, state(), "must be 'AutoencoderKL' or 'VQModel', not 'AutoencoderTiny'"),
        ({"act_fn": "relu"}, state(), "act_fn: must be 'silu' or 'swish', not 'relu'"),
        ({"down_block_types": ["Other"]}, state(), "down_block_types: must all be 'DownEncoderBlock2D' or"),
        ({}, lacking("decoder.conv_in.bias"), "weights do not fit the network: lacks the tensor decoder.conv_in.bias"),
        ({}, {"a": torch.ones(1)}, "no network that raypipe knows"),
        ({}, lacking("post_quant_conv.weight"), "lacks the tensor post_quant_conv.weight, whose shape is needed"),
    ],
)
def test_what_is_none_is_refused_in_one_line(
    changes: dict[str, Any],
    tensors: dict[str, Tensor],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = make(tmp_path / "vae", tensors, **changes)
    assert main(["import", str(given), "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert message in error and str(given) in error and error.count("\n") == 1
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
@pytest.mark.parametrize("content", [None, b"torn"])
def test_torn_folders_are_told(
    name: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = make(tmp_path / "vae", state())
    if content is None:
        (given / name).unlink()
    else:
        (given / name).write_bytes(content)
    assert main(["import", str(given), "--out", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (f"no {name}" if content is None else "cannot be read") in error


@pytest.mark.slow
@torch.no_grad()
def test_at_the_published_size() -> None:
    """sd-vae-ft-mse's own sizes and old names, 84M parameters; the folders (1 GB) do not outlive the test."""
    full = {name: torch.empty(tensor.shape).normal_(0, 0.02) for name, tensor in AutoencoderKL().state_dict().items()}
    for new, before in OLD.items():
        full = {name.replace(f".{new}.", f".{before}."): tensor for name, tensor in full.items()}
    sizes = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        given = make(folder / "vae", full, **sizes, **blocks)
        assert main(["import", str(given), "--out", str(folder / "model")]) == 0
        assert checkpoint.load_autoencoder(folder / "model").encode(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 8, 8)
        assert main(["export", str(folder / "model"), "--out", str(folder / "back")]) == 0
        back = load_file(folder / "back" / "diffusion_pytorch_model.safetensors")
        assert back.keys() == full.keys() and all(torch.equal(back[name], full[name]) for name in full)
