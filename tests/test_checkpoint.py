"""Model folders: what is saved comes back, whole or not at all; published files come back tensor for tensor."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raypipe import checkpoint, config
from raypipe.checkpoint import Meta, main
from raypipe.models.autoencoder import Autoencoder, build_autoencoder, build_network
from raypipe.models.components import build_component

MODEL = config.Model(num_input_frames=2, inner_dim=16, num_heads=2)
META = Meta(
    component="flow",
    model=MODEL,
    latent_channels=3,
    step=7,
    seed=1,
    noise_std=0.1,
    loss="nll",
    residual_std=[0.5, 1.0, 2.0],
    autoencoder_hash="ab",
    extra={"trial": 3},
)


def build(seed: int = 0, component: str = "flow") -> nn.Module:
    torch.manual_seed(seed)
    return build_component(component, MODEL, 3)


def optimizer_of(module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.8, 0.95))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, u = torch.randn(4, 6, 4, 4, generator=generator), torch.rand(4, generator=generator)
        optimizer.zero_grad()
        module(x, u).square().mean().backward()
        optimizer.step()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("component", config.COMPONENTS)
def test_component_round_trip(component: config.Component, tmp_path: Path) -> None:
    module, meta = build(component=component), replace(META, component=component)
    checkpoint.save_component(tmp_path / "a" / "model", module, meta)
    before = torch.get_rng_state()
    loaded = checkpoint.load_component(tmp_path / "a" / "model")
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert_same(loaded, module)
    assert checkpoint.read_meta(tmp_path / "a" / "model") == meta
    assert json.loads((tmp_path / "a" / "model" / "config.json").read_text())["kind"] == "component"
    assert os.listdir(tmp_path / "a") == ["model"]


def test_training_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    straight = build()
    optimizer = optimizer_of(straight)
    train(straight, optimizer, range(3))
    checkpoint.save_component(tmp_path / "model", straight, META, optimizer)
    train(straight, optimizer, range(3, 6))

    resumed = checkpoint.load_component(tmp_path / "model").train()
    optimizer = optimizer_of(resumed)
    checkpoint.load_optimizer(tmp_path / "model", optimizer)
    train(resumed, optimizer, range(3, 6))
    assert_same(resumed, straight)


def test_compiled_and_channels_last_modules_are_saved_as_plain_ones(tmp_path: Path) -> None:
    module = build()
    checkpoint.save_component(tmp_path / "plain", module, META)
    checkpoint.save_component(tmp_path / "compiled", torch.compile(module.to(memory_format=torch.channels_last)), META)
    assert checkpoint.weights_hash(tmp_path / "plain") == checkpoint.weights_hash(tmp_path / "compiled")


@pytest.mark.parametrize("type_", ["conv", "vqvae"])
def test_autoencoder_round_trip_and_hash(type_: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = config.Autoencoder(type=type_, width=8, num_embeddings=16)
    autoencoder = build_autoencoder(settings)
    checkpoint.save_autoencoder(tmp_path / "one", autoencoder, settings, step=5, extra={"psnr": 30.0})
    checkpoint.save_autoencoder(tmp_path / "same", autoencoder)
    loaded = checkpoint.load_autoencoder(tmp_path / "one")
    assert_same(loaded, autoencoder)
    assert not loaded.training
    meta = checkpoint.read_meta(tmp_path / "one")
    assert (meta.kind, meta.settings, meta.step, meta.extra) == ("autoencoder", settings, 5, {"psnr": 30.0})
    assert checkpoint.autoencoder_hash(tmp_path / "one") == checkpoint.autoencoder_hash(tmp_path / "same")
    autoencoder.scale.mul_(2)
    checkpoint.save_autoencoder(tmp_path / "same", autoencoder)
    assert checkpoint.autoencoder_hash(tmp_path / "one") != checkpoint.autoencoder_hash(tmp_path / "same")


@pytest.mark.parametrize("stage", ["save_file", "replace"])
def test_a_failed_save_leaves_the_old_folder(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    checkpoint.save_component(folder, build(0), META, optimizer_of(build(0)))
    before = files(folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(*(checkpoint, "save_file", fail) if stage == "save_file" else (os, "replace", fail))  # type: ignore[arg-type]
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save_component(folder, build(1), META)
    assert files(folder) == before
    assert os.listdir(tmp_path) == ["model"]
    checkpoint.save_component(folder, build(1), META)
    assert_same(checkpoint.load_component(folder), build(1))
    assert not (folder / "optimizer.safetensors").exists()


def test_a_crash_between_the_two_renames_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    checkpoint.save_component(folder, build(0), META)
    replace_file, calls = os.replace, []

    def crash_at_the_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_component(folder, build(1), META)
    assert not folder.exists()
    assert_same(checkpoint.load_component(folder), build(0))
    assert checkpoint.weights_hash(folder)
    checkpoint.save_component(folder, build(2), META)
    assert_same(checkpoint.load_component(folder), build(2))
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"cannot save a model here, it holds 'thesis.txt'; choose"):
        checkpoint.save_component(tmp_path, build(), META)
    with pytest.raises(ValueError, match=r"cannot save a model here, it is a file"):
        checkpoint.save_component(tmp_path / "thesis.txt", build(), META)
    assert files(tmp_path) == {"thesis.txt": b"years of work"}


def break_folder(folder: Path, how: str) -> None:
    config_file, model_file = folder / "config.json", folder / "model.safetensors"
    content = json.loads(config_file.read_text())
    if how == "no folder":
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    elif how == "no config":
        config_file.unlink()
    elif how == "no weights":
        model_file.unlink()
    elif how == "not json":
        config_file.write_text("{")
    elif how == "torn weights":
        model_file.write_bytes(model_file.read_bytes()[:-100])
    elif how == "empty weights":
        model_file.write_bytes(b"")
    elif how == "a list":
        config_file.write_text("[]")
    elif how == "missing tensor":
        save_file(dict(list(load_file(model_file).items())[1:]), model_file)
    elif how == "other size":
        content["model"]["inner_dim"] = 32
    elif how == "odd heads":
        content["model"]["num_heads"] = 3
    elif how == "unknown key":
        content["colour"] = "red"
    elif how == "wrong type":
        content["step"] = "many"
    elif how == "other component":
        content["component"] = "drift"
    if how in ("other size", "odd heads", "unknown key", "wrong type", "other component"):
        config_file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no folder", r"model: not a model folder \(no config.json\); give one that training or `python -m"),
        ("no config", r"model: not a model folder \(no config.json\); give one"),
        ("no weights", r"model: not a model folder \(no model.safetensors\); give one"),
        ("not json", r"config.json: not JSON"),
        ("a list", r"config.json: .*dict"),
        ("torn weights", r"model.safetensors: cannot be read"),
        ("empty weights", r"model.safetensors: cannot be read"),
        ("missing tensor", r"model: weights do not fit the network: lacks network\."),
        ("other size", r"model: weights do not fit the network: .* and \d+ more"),
        ("odd heads", r"config.json: model: .*model.inner_dim"),
        ("unknown key", r"config.json: colour: "),
        ("wrong type", r"config.json: step: "),
        ("other component", r"config.json: component: "),
    ],
)
def test_broken_folders_are_told_in_one_line(how: str, message: str, tmp_path: Path) -> None:
    checkpoint.save_component(tmp_path / "model", build(), META)
    break_folder(tmp_path / "model", how)
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load_component(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_wrong_kinds_and_missing_optimizers_are_told(tmp_path: Path) -> None:
    module = build()
    checkpoint.save_component(tmp_path / "flow", module, META)
    checkpoint.save_autoencoder(tmp_path / "ae", build_autoencoder(config.Autoencoder(width=8)))
    with pytest.raises(ValueError, match=r"ae: holds a model of kind autoencoder, .*load_autoencoder"):
        checkpoint.load_component(tmp_path / "ae")
    for load in (checkpoint.load_autoencoder, checkpoint.autoencoder_hash):
        with pytest.raises(ValueError, match=r"flow: holds a model of kind component, .*load_component"):
            load(tmp_path / "flow")
    with pytest.raises(ValueError, match=r"flow: no optimizer state"):
        checkpoint.load_optimizer(tmp_path / "flow", optimizer_of(module))
    checkpoint.save_component(tmp_path / "flow", module, META, optimizer_of(module))
    with pytest.raises(ValueError, match=r"optimizer.safetensors: does not fit this optimizer"):
        checkpoint.load_optimizer(tmp_path / "flow", torch.optim.AdamW([next(module.parameters())]))
    with pytest.raises(ValueError, match="either component and model must be given, or network"):
        Meta(4, component="flow")


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {"a": [1, 2.5, None, True, "x"], 3: (shared, shared.T), "empty": {}, "inf": float("inf")}
    checkpoint.write_tree(tmp_path / "tree", tree)
    found = checkpoint.read_tree(tmp_path / "tree")
    assert torch.equal(found[3][1], shared.T)
    assert isinstance(found.pop(3), tuple)
    del tree[3]
    assert found == tree
    with pytest.raises(ValueError, match="a set cannot be kept without pickle"):
        checkpoint.write_tree(tmp_path / "tree", {"a": {1}})


# Published files: made here, of networks of our own, as the published code would write them.

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


def published_file(component: str, ddp: str) -> dict[str, Any]:
    state = prefixed("vector_field_regressor.", component_state(component, 0))
    if component == "diffusion":
        state |= prefixed("f.vector_field_regressor.", component_state("flow", 1))
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
@pytest.mark.parametrize("component", config.COMPONENTS)
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
    assert one_line(capsys).endswith("save its state dict by itself")
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
        (b"", "not a checkpoint of tensors and plain values alone"),
        (b"not a checkpoint at all", "not a checkpoint of tensors and plain values alone"),
        ([1, 2], "has no state dict under 'model' or 'state_dict'"),
        ({"weights": state}, "has no state dict under 'model' or 'state_dict'"),
        ({"model": {}}, "has no state dict under 'model' or 'state_dict'"),
        ({"model": {"a": 1}}, "has no state dict under 'model' or 'state_dict'"),
        ({"model": {"a": torch.ones(1)}}, "no network that raypipe knows"),
        ({"model": sizeless}, "lacks the tensor project_in.1.weight, which tells a size"),
        ({"model": lacking}, "weights do not fit the network: lacks in_blocks.0.norm1.weight"),
        ({"model": state | {"vector_field_regressor.odd": torch.ones(1)}}, "has an unknown odd"),
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
        (["--component", "denoiser"], "8 channels in and 4 out do not fit a denoiser"),
        (["--out", str(tmp_path)], "is there already; choose another folder"),
    ):
        assert main(["import", str(file), "--out", str(out), *arguments]) == 2
        assert message in one_line(capsys)
    with pytest.raises(SystemExit) as caught:
        main(["import", str(file)])
    assert caught.value.code == 2
    assert "--out" in one_line(capsys)


def test_what_cannot_be_exported_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint.save_component(tmp_path / "flow", build(), META)
    checkpoint.save_autoencoder(tmp_path / "ae", build_autoencoder(config.Autoencoder(width=8)))
    (tmp_path / "there").touch()
    for folder, out, message in (
        ("flow", "x", "the published network has no time input"),
        ("ae", "x", "a conv autoencoder has no published form"),
        ("nowhere", "x", "not a model folder"),
        ("flow", "there", "is there already; choose another file"),
    ):
        assert main(["export", str(tmp_path / folder), "--out", str(tmp_path / out)]) == 2
        assert message in one_line(capsys)
    assert sorted(os.listdir(tmp_path)) == ["ae", "flow", "there"]
