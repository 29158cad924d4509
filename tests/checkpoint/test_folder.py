"""Model folders: what is saved comes back, whole or not at all."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raypipe import checkpoint, config
from raypipe.checkpoint import Meta, tensors
from raypipe.checkpoint import folder as saving
from raypipe.models.autoencoder import build_autoencoder
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


def test_a_copy_goes_on_as_what_it_was_copied_from(tmp_path: Path) -> None:
    source, other, live = build(0), build(1), build(2)
    optimizer = optimizer_of(live)
    train(live, optimizer, range(2))
    checkpoint.save_component(tmp_path / "a", source, META, optimizer, live=live)
    checkpoint.save_component(tmp_path / "b", other, META)
    before = files(tmp_path / "a")
    checkpoint.copy_component(tmp_path / "a", tmp_path / "b", extra={"from": "a"})
    assert files(tmp_path / "a") == before
    assert {**files(tmp_path / "b"), "config.json": b""} == {**before, "config.json": b""}
    assert checkpoint.read_meta(tmp_path / "b") == replace(META, extra={"from": "a"})

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"it contains 'notes.txt'"):
        checkpoint.copy_component(tmp_path / "a", tmp_path / "c")


def test_compiled_and_channels_last_modules_are_saved_as_plain_ones(tmp_path: Path) -> None:
    module = build()
    checkpoint.save_component(tmp_path / "plain", module, META)
    checkpoint.save_component(tmp_path / "compiled", torch.compile(module.to(memory_format=torch.channels_last)), META)
    assert checkpoint.weights_hash(tmp_path / "plain") == checkpoint.weights_hash(tmp_path / "compiled")


def test_a_module_under_ddp_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    module = build()
    checkpoint.save_component(tmp_path / "plain", module, META)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        checkpoint.save_component(tmp_path / "wrapped", wrapped, META, optimizer_of(wrapped))
    finally:
        torch.distributed.destroy_process_group()
    assert checkpoint.weights_hash(tmp_path / "plain") == checkpoint.weights_hash(tmp_path / "wrapped")


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
        patch.setattr(*(saving, "save_file", fail) if stage == "save_file" else (os, "replace", fail))  # type: ignore[arg-type]
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
    with pytest.raises(ValueError, match=r"cannot save a model here because it contains 'thesis.txt'; choose"):
        checkpoint.save_component(tmp_path, build(), META)
    with pytest.raises(ValueError, match=r"cannot save a model here because it is a file"):
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
        ("missing tensor", r"model: weights do not fit the network: lacks the tensor network\."),
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
    with pytest.raises(ValueError, match=r"ae: contains a model of kind autoencoder, .*load_autoencoder"):
        checkpoint.load_component(tmp_path / "ae")
    for load in (checkpoint.load_autoencoder, checkpoint.autoencoder_hash):
        with pytest.raises(ValueError, match=r"flow: contains a model of kind component, .*load_component"):
            load(tmp_path / "flow")
    with pytest.raises(ValueError, match=r"flow: no optimizer state"):
        checkpoint.load_optimizer(tmp_path / "flow", optimizer_of(module))
    checkpoint.save_component(tmp_path / "flow", module, META, optimizer_of(module))
    with pytest.raises(ValueError, match=r"optimizer.safetensors: does not fit this optimizer"):
        checkpoint.load_optimizer(tmp_path / "flow", torch.optim.AdamW([next(module.parameters())]))
    with pytest.raises(ValueError, match="give either component and model, or network"):
        Meta(4, component="flow")


def test_trees_come_back_as_they_were(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tree = {"a": [1, 2.5, None, True, "x"], 3: (shared, shared.T), "empty": {}, "inf": float("inf")}
    tensors.write_tree(tmp_path / "tree", tree)
    found = tensors.read_tree(tmp_path / "tree")
    assert torch.equal(found[3][1], shared.T)
    assert isinstance(found.pop(3), tuple)
    del tree[3]
    assert found == tree
    with pytest.raises(ValueError, match="a set cannot be stored without pickle"):
        tensors.write_tree(tmp_path / "tree", {"a": {1}})
