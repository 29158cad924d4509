"""Published files come back tensor for tensor; what is none is refused in one line.

The files are made here, of networks of our own, as the published code would write them.
"""

import os
import pickle
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raypipe import checkpoint, config
from raypipe.checkpoint import Meta
from raypipe.checkpoint.__main__ import main
from raypipe.models.autoencoder import Autoencoder, build_autoencoder, build_network
from raypipe.models.components import build_component

PUBLISHED = config.Model(num_input_frames=2, inner_dim=16, num_heads=2, time_input=False, depth=2, out_norm="bn")


def component_state(component: str, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    module = build_component(component, PUBLISHED, 4)
    state = {name.removeprefix("network."): tensor for name, tensor in module.state_dict().items()}
    return state | {
        "time_projection.0.weight": torch.randn(256, 1),
        "time_projection.0.bias": torch.randn(256),
        "time_projection.2.weight": torch.randn(16, 256),
        "time_projection.2.bias": torch.randn(16),
    }


def network_state(name: str) -> dict[str, Tensor]:
    torch.manual_seed(5)
    arguments = {"num_embeddings": 8} if name == "vqvae" else {"num_embeddings": 8, "ch": 32, "ch_mult": [1, 2]}
    state = dict(build_network(name, arguments | {"channels": 4}).state_dict())
    return state if name == "vqvae" else state | {"loss.discriminator.weight": torch.randn(3)}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def published_file(component: str, ddp: str, seed: int = 0, flow_seed: int = 1) -> dict[str, Any]:
    state = prefixed("vector_field_regressor.", component_state(component, seed))
    if component == "diffusion":
        state |= prefixed("f.vector_field_regressor.", component_state("flow", flow_seed))
        state |= prefixed("d.vector_field_regressor.", component_state("denoiser", 2))
    state |= prefixed("ae.backbone.", network_state("vqvae"))
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return {
        "model": prefixed(ddp, state),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "global_step": 300_000,
    }


def assert_equal_trees(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) or isinstance(found, dict)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal_trees(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        for a, b in zip(found, expected, strict=True):
            assert_equal_trees(a, b)
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("ddp", ["", "module."])
@pytest.mark.parametrize("component", config.REFERENCE_COMPONENTS)
def test_published_component_there_and_back(component: str, ddp: str, tmp_path: Path) -> None:
    original = published_file(component, ddp)
    torch.save(original, tmp_path / "in.pth")
    out = tmp_path / "model"
    assert main(["import", str(tmp_path / "in.pth"), "--out", str(out), "--num-heads", "2"]) == 0

    meta = checkpoint.read_meta(out)
    assert (meta.component, meta.latent_channels, meta.step) == (component, 4, 300_000)
    assert meta.model == replace(PUBLISHED, dropout=0.05)
    assert meta.autoencoder_hash == checkpoint.autoencoder_hash(out / "autoencoder")
    parts = {"flow", "denoiser"} if component == "diffusion" else set()
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"autoencoder", *parts}
    for part in parts:
        assert checkpoint.read_meta(out / part).component == part
        checkpoint.load_component(out / part)
    if component == "diffusion":
        assert (meta.flow, meta.flow_hash) == ("flow", checkpoint.weights_hash(out / "flow"))

    torch.manual_seed(0)
    expected = build_component(component, PUBLISHED, 4).eval()
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(checkpoint.load_component(out)(x), expected(x))

    assert main(["export", str(out), "--out", str(tmp_path / "out.pth")]) == 0
    assert_equal_trees(torch.load(tmp_path / "out.pth", weights_only=True), original)


def import_as(folder: Path, content: dict[str, Any], num_heads: int = 2) -> Meta:
    file = folder.parent / f"{folder.name}.pth"
    torch.save(content, file)
    assert main(["import", str(file), "--out", str(folder), "--num-heads", str(num_heads)]) == 0
    return checkpoint.read_meta(folder)


def folders(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def assert_exported(folder: Path, expected: dict[str, Any]) -> None:
    file = folder.parent / f"{folder.name}-out.pth"
    assert main(["export", str(folder), "--out", str(file)]) == 0
    assert_equal_trees(torch.load(file, weights_only=True), expected)


def test_the_same_file_imported_twice_is_stored_once(tmp_path: Path) -> None:
    original = published_file("diffusion", "")
    first, again = (import_as(tmp_path / name, original) for name in ("g", "h"))
    assert folders(tmp_path / "g") == {"flow", "denoiser", "autoencoder"}
    assert folders(tmp_path / "h") == set()
    assert (first.flow, again.flow) == ("flow", "../g/flow")
    assert first.flow_hash == again.flow_hash == checkpoint.weights_hash(tmp_path / "h" / "../g/flow")
    assert_exported(tmp_path / "g", original)
    assert_exported(tmp_path / "h", original)


def test_a_diffusion_refers_to_its_flow_that_was_imported_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flow, diffusion = published_file("flow", "module.", seed=1), published_file("diffusion", "module.")
    import_as(tmp_path / "f", flow)
    capsys.readouterr()
    meta = import_as(tmp_path / "g", diffusion)
    assert (meta.flow, meta.flow_hash) == ("../f", checkpoint.weights_hash(tmp_path / "f"))
    assert meta.autoencoder_hash == checkpoint.autoencoder_hash(tmp_path / "f" / "autoencoder")
    assert folders(tmp_path / "g") == {"denoiser"}
    assert f"{tmp_path / 'f'}: flow, 2 input frames" in capsys.readouterr().out
    assert_exported(tmp_path / "f", flow)
    assert_exported(tmp_path / "g", diffusion)


def test_another_flow_or_other_heads_are_stored_for_themselves(tmp_path: Path) -> None:
    import_as(tmp_path / "g", published_file("diffusion", ""))
    other = published_file("diffusion", "", flow_seed=7)
    meta = import_as(tmp_path / "other", other)
    assert meta.flow == "flow" and folders(tmp_path / "other") == {"flow"}
    assert_exported(tmp_path / "other", other)
    meta = import_as(tmp_path / "heads", published_file("diffusion", ""), num_heads=4)
    assert meta.flow == "flow" and folders(tmp_path / "heads") == {"flow", "denoiser"}
    flow = checkpoint.read_meta(tmp_path / "heads" / "flow").model
    assert flow is not None and flow.num_heads == 4


def test_a_flow_that_was_renamed_is_found_and_one_that_is_gone_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = published_file("diffusion", "")
    import_as(tmp_path / "f", published_file("flow", "", seed=1))
    import_as(tmp_path / "g", original)
    (tmp_path / "f").rename(tmp_path / "renamed")
    assert_exported(tmp_path / "g", original)
    torch.manual_seed(3)
    model = checkpoint.read_meta(tmp_path / "renamed").model
    assert model is not None
    shutil.rmtree(tmp_path / "renamed")
    checkpoint.save_component(tmp_path / "f", build_component("flow", model, 4), Meta(4, "flow", model))
    capsys.readouterr()
    assert main(["export", str(tmp_path / "g"), "--out", str(tmp_path / "lost.pth")]) == 2
    line = one_line(capsys)
    assert f"{tmp_path / 'g'}: refers to the network in {tmp_path / 'f'}" in line and "which no longer exists" in line
    assert not (tmp_path / "lost.pth").exists()


@pytest.mark.parametrize("name", ["vqvae", "vqgan"])
def test_published_autoencoder_there_and_back(name: str, tmp_path: Path) -> None:
    state = network_state(name)
    original = {"model": prefixed("module.", state)} if name == "vqvae" else {"state_dict": state, "epoch": 3}
    torch.save(original, tmp_path / "in.ckpt")
    assert main(["import", str(tmp_path / "in.ckpt"), "--out", str(tmp_path / "ae")]) == 0
    assert checkpoint.load_autoencoder(tmp_path / "ae").architecture[0] == name
    assert main(["export", str(tmp_path / "ae"), "--out", str(tmp_path / "out.ckpt")]) == 0
    assert_equal_trees(torch.load(tmp_path / "out.ckpt", weights_only=True), original)


def test_an_unknown_embedded_autoencoder_is_kept_for_export(tmp_path: Path) -> None:
    original = {"model": prefixed("vector_field_regressor.", component_state("flow", 0)) | {"ae.odd": torch.ones(2)}}
    torch.save(original, tmp_path / "in.pth")
    assert main(["import", str(tmp_path / "in.pth"), "--out", str(tmp_path / "f"), "--num-heads", "2"]) == 0
    assert checkpoint.read_meta(tmp_path / "f").autoencoder_hash is None
    assert main(["export", str(tmp_path / "f"), "--out", str(tmp_path / "out.pth")]) == 0
    assert_equal_trees(torch.load(tmp_path / "out.pth", weights_only=True), original)


def test_our_own_networks_are_exported_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = build_component("flow", PUBLISHED, 4).eval()
    checkpoint.save_component(tmp_path / "flow", module, Meta(4, "flow", PUBLISHED, step=9))
    autoencoder = Autoencoder(build_network("vqvae", {"num_embeddings": 8}))
    checkpoint.save_autoencoder(tmp_path / "ae", autoencoder)
    for name in ("flow", "ae"):
        assert main(["export", str(tmp_path / name), "--out", str(tmp_path / f"{name}.pth")]) == 0
        again = ["import", str(tmp_path / f"{name}.pth"), "--out", str(tmp_path / f"{name}2"), "--num-heads", "2"]
        assert main(again) == 0
        assert checkpoint.weights_hash(tmp_path / name) == checkpoint.weights_hash(tmp_path / f"{name}2")
    content = torch.load(tmp_path / "flow.pth", weights_only=True)
    assert content["global_step"] == 9
    assert content["model"].keys() == prefixed("vector_field_regressor.", component_state("flow", 0)).keys()


@pytest.mark.slow
def test_at_the_published_size() -> None:
    """98M parameters, saved under DDP, there and back; the folders (1.2 GB) do not outlive the test."""
    model = config.Model(inner_dim=768, depth=4, mid_depth=5, num_heads=8, dropout=0.05, time_input=False)
    with torch.device("meta"):
        shapes = build_component("flow", model, 4).state_dict()
    state = {name.removeprefix("network."): torch.rand(tensor.shape) for name, tensor in shapes.items()}
    state |= {"time_projection.0.weight": torch.rand(256, 1), "time_projection.0.bias": torch.rand(256)}
    state |= {"time_projection.2.weight": torch.rand(768, 256), "time_projection.2.bias": torch.rand(768)}
    assert sum(tensor.numel() for tensor in state.values()) == pytest.approx(98e6, rel=0.01)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        original = {"model": prefixed("module.vector_field_regressor.", state), "global_step": 300_000}
        torch.save(original, folder / "f.pth")
        assert main(["import", str(folder / "f.pth"), "--out", str(folder / "f")]) == 0
        assert checkpoint.read_meta(folder / "f").model == model
        with torch.no_grad():
            assert checkpoint.load_component(folder / "f")(torch.zeros(1, 16, 8, 8)).shape == (1, 4, 8, 8)
        assert main(["export", str(folder / "f"), "--out", str(folder / "back.pth")]) == 0
        assert_equal_trees(torch.load(folder / "back.pth", weights_only=True, mmap=True), original)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["RAYPIPE_TEST_CANARY"],)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_malicious_pickle_is_refused(
    wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYPIPE_TEST_CANARY", str(tmp_path / "canary"))
    if wrapped:
        torch.save({"model": {"vector_field_regressor.x": torch.ones(1)}, "optimizer": Malicious()}, tmp_path / "evil")
    else:
        (tmp_path / "evil").write_bytes(pickle.dumps(Malicious()))
    assert main(["import", str(tmp_path / "evil"), "--out", str(tmp_path / "model")]) == 2
    assert "WARNING: the file calls posix.mkdir, which was not run" in one_line(capsys)
    assert os.listdir(tmp_path) == ["evil"]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("raypipe.checkpoint")
    return captured.err.strip()


def test_bad_files_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "file.pth", tmp_path / "model"
    state = prefixed("vector_field_regressor.", component_state("flow", 0))
    lacking = dict(state)
    lacking.pop("vector_field_regressor.in_blocks.0.norm1.weight")
    sizeless = dict(state)
    sizeless.pop("vector_field_regressor.project_in.1.weight")
    cases: list[tuple[Any, str]] = [
        (None, "no such file; give a checkpoint"),
        (b"", "is empty (0 bytes); copy or download it again"),
        (b"not a checkpoint at all", "found 23 bytes that are damaged, truncated or of another format"),
        ([1, 2], "no network that raypipe knows: found a list; expected a component"),
        ({"model": {}}, "found model (a dict of 0)"),
        ({"model": {"a": 1}}, "found model (a dict of 1)"),
        ({"model": {"a": torch.ones(1)}}, "found model (1 tensor a); expected a component"),
        ({"model": sizeless}, "lacks the tensor project_in.1.weight, whose shape is needed"),
        ({"model": lacking}, "weights do not fit the network: lacks the tensor in_blocks.0.norm1.weight"),
        ({"model": state | {"vector_field_regressor.odd": torch.ones(1)}}, "has an unknown tensor odd"),
        ({"state_dict": {"quantize.embedding.weight": torch.ones(8, 4)}}, "lacks the tensor encoder.conv_in.weight"),
    ]
    for content, message in cases:
        file.unlink(missing_ok=True)
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            torch.save(content, file)
        assert main(["import", str(file), "--out", str(out)]) == 2
        line = one_line(capsys)
        assert message in line
        assert str(file) in line
        assert not out.exists()
    torch.save({"model": state}, file)
    for arguments, message in (
        (["--num-heads", "3"], "model.num_heads (3)"),
        (["--component", "denoiser"], "8 input and 4 output channels do not fit a denoiser"),
        (["--out", str(tmp_path)], "already exists; choose another folder"),
    ):
        assert main(["import", str(file), "--out", str(out), *arguments]) == 2
        assert message in one_line(capsys)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(file)])
    assert caught.value.code == 2
    assert "--out" in one_line(capsys)


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeing = config.Model(num_input_frames=2, inner_dim=16, num_heads=2)
    checkpoint.save_component(tmp_path / "flow", build_component("flow", seeing, 4), Meta(4, "flow", seeing))
    checkpoint.save_autoencoder(tmp_path / "ae", build_autoencoder(config.Autoencoder(width=8)))
    (tmp_path / "there").touch()
    for folder, out, message in (
        ("flow", "x", "the reference network has no time input"),
        ("ae", "x", "a conv autoencoder cannot be exported"),
        ("nowhere", "x", "not a model folder"),
        ("flow", "there", "already exists; choose another file"),
    ):
        assert main(["export", str(tmp_path / folder), "--out", str(tmp_path / out)]) == 2
        assert message in one_line(capsys)
    assert sorted(os.listdir(tmp_path)) == ["ae", "flow", "there"]
