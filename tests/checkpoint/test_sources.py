"""Checkpoints that people have, each made from nothing with a small network: what is imported, and what is said."""

import argparse
import io
import os
import pickle
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raypipe import checkpoint, config
from raypipe.checkpoint.__main__ import main
from raypipe.models.autoencoder import build_network
from raypipe.models.components import build_component

VQ = {"num_embeddings": 8, "channels": 4, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attention_levels": [1]}
KL = {"channels": 4, "widths": [32, 64, 64], "num_res_blocks": 2, "attention_levels": [1]}
KINDS = {"vqgan": VQ, "kl": KL}
FLOW = config.Model(num_input_frames=2, inner_dim=16, num_heads=2, time_input=False)


def state(kind: str = "vqgan", seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(build_network(kind, KINDS[kind]).state_dict())


def flow_state(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    named = build_component("flow", FLOW, 4).state_dict()
    return {name.replace("network.", "vector_field_regressor."): tensor for name, tensor in named.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def run(file: Path, *arguments: str) -> int:
    return main(["import", str(file), "--out", str(file.parent / "model"), *arguments])


def imported(file: Path, *arguments: str) -> dict[str, Tensor]:
    """Import a file, and the tensors of the network."""
    assert run(file, *arguments) == 0
    found = load_file(file.parent / "model" / "model.safetensors")
    return {name.removeprefix("network."): tensor for name, tensor in found.items() if name != "scale"}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name].float()) for name in expected)


# The other naming scheme of each autoencoder, written out by hand: CompVis <-> diffusers.
VQ_TO_DIFFUSERS = [
    ("encoder.down.0.block.", "encoder.down_blocks.0.resnets."),
    ("encoder.down.1.block.", "encoder.down_blocks.1.resnets."),
    ("encoder.down.1.attn.", "encoder.down_blocks.1.attentions."),
    ("encoder.down.0.downsample.", "encoder.down_blocks.0.downsamplers.0."),
    ("decoder.up.1.block.", "decoder.up_blocks.0.resnets."),
    ("decoder.up.0.block.", "decoder.up_blocks.1.resnets."),
    ("decoder.up.1.attn.", "decoder.up_blocks.0.attentions."),
    ("decoder.up.1.upsample.", "decoder.up_blocks.0.upsamplers.0."),
]
KL_TO_DIFFUSERS = [
    *((f"encoder.down.{i}.block.", f"encoder.down_blocks.{i}.resnets.") for i in range(3)),
    *((f"encoder.down.{i}.downsample.", f"encoder.down_blocks.{i}.downsamplers.0.") for i in range(2)),
    ("encoder.down.1.attn.", "encoder.down_blocks.1.attentions."),
    *((f"decoder.up.{2 - i}.block.", f"decoder.up_blocks.{i}.resnets.") for i in range(3)),
    *((f"decoder.up.{2 - i}.upsample.", f"decoder.up_blocks.{i}.upsamplers.0.") for i in range(2)),
    ("decoder.up.1.attn.", "decoder.up_blocks.1.attentions."),
]
BOTH_TO_DIFFUSERS = [
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.", ".mid_block.attentions.0."),
    ("coder.norm_out.", "coder.conv_norm_out."),
    (".nin_shortcut.", ".conv_shortcut."),
]
IN_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def other_scheme(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A VQ autoencoder as diffusers names it, a KL autoencoder as CompVis does."""
    pairs = (VQ_TO_DIFFUSERS if kind == "vqgan" else KL_TO_DIFFUSERS) + BOTH_TO_DIFFUSERS
    pairs += [(f".{ours}.", f".{theirs}.") for ours, theirs in IN_ATTENTION.items()]
    renamed = {}
    for name, tensor in tensors.items():
        attention = ".attn" in name or ".attentions." in name
        for compvis, diffusers in pairs:
            if compvis.strip(".") in IN_ATTENTION and not attention:
                continue
            name = name.replace(compvis, diffusers) if kind == "vqgan" else name.replace(diffusers, compvis)
        if attention and "norm" not in name and name.endswith("weight"):
            tensor = tensor[:, :, 0, 0] if kind == "vqgan" else tensor[:, :, None, None]
        renamed[name] = tensor.contiguous()
    return renamed


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
@pytest.mark.parametrize("kind", ["vqgan", "kl"])
def test_both_naming_schemes_there_and_back(kind: str, suffix: str, tmp_path: Path) -> None:
    file, given = tmp_path / f"a.{suffix}", other_scheme(kind, state(kind))
    assert ("encoder.down_blocks.0.resnets.0.conv1.weight" in given) == (kind == "vqgan")
    assert ("encoder.down.0.block.0.conv1.weight" in given) == (kind == "kl")
    if suffix == "ckpt":
        torch.save({"state_dict": given}, file)
    else:
        save_file(given, file)
    assert_same(imported(file), state(kind))
    assert checkpoint.load_autoencoder(tmp_path / "model").architecture[0] == kind
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "back")]) == 0
    back = load_file(tmp_path / "back") if suffix == "safetensors" else torch.load(tmp_path / "back")["state_dict"]
    assert back.keys() == given.keys()
    assert all(back[name].shape == given[name].shape and torch.equal(back[name], given[name]) for name in given)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "prefix", ["", "module.", "model.", "_orig_mod.", "first_stage_model.", "module._orig_mod.vae."]
)
@pytest.mark.parametrize("entry", [None, "state_dict", "model_state_dict", "generator"])
def test_any_prefix_and_entry(entry: str | None, prefix: str, legacy: bool, tmp_path: Path) -> None:
    given = under(prefix, state())
    content: dict[str, Any] = given if entry is None else {"epoch": 3, entry: given}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert_same(imported(tmp_path / "a.pt"), state())
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "back.pt")]) == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(content)
    assert list(back if entry is None else back[entry]) == list(given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    given = {name: tensor.to(dtype) for name, tensor in state().items()}
    torch.save(given, tmp_path / "a.pt")
    assert_same(imported(tmp_path / "a.pt"), given)


def test_what_is_skipped_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = {"loss.discriminator.weight": torch.ones(3), "loss.logvar": torch.ones(1), "counter": torch.ones(1)}
    options = argparse.Namespace(lr=1e-3)
    torch.save({"state_dict": state() | extra, "hyper_parameters": options, "epoch": 2}, tmp_path / "a.ckpt")
    assert_same(imported(tmp_path / "a.ckpt"), state())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    for part in (
        "argparse.Namespace (no code",
        "2 tensors loss.*, 1 tensor counter (kept",
        "the entries hyper_parameters",
    ):
        assert part in line


def averaged(style: str) -> tuple[dict[str, Any], str]:
    """A file with weights and their moving average, and the prefix of the average."""
    plain, average = state(seed=0), state(seed=1)
    if style == "latent diffusion":  # drops the dots from the names
        flat = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in average.items()}
        return {"state_dict": flat | plain | {"model_ema.decay": torch.tensor(0.99)}}, "state_dict.model_ema."
    if style == "entry":
        return {"ema": average, "model": plain}, "ema"
    return under("ema.", average) | under("model.", plain), "ema."


@pytest.mark.parametrize("style", ["latent diffusion", "entry", "prefix"])
def test_averaged_weights_are_imported_on_demand(
    style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, prefix = averaged(style)
    (tmp_path / "plain").mkdir()
    for folder in (tmp_path, tmp_path / "plain"):
        torch.save(content, folder / "a.pt")
    assert_same(imported(tmp_path / "plain" / "a.pt"), state(seed=0))
    assert f"(--prefix {prefix.rstrip('.')}. imports it instead)" in capsys.readouterr().out
    assert_same(imported(tmp_path / "a.pt", "--prefix", prefix), state(seed=1))


def test_averaged_weights_alone(tmp_path: Path) -> None:
    torch.save({"ema_state_dict": under("module.", state())}, tmp_path / "a.pt")
    assert_same(imported(tmp_path / "a.pt"), state())


def test_a_whole_stable_diffusion_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = {"model.diffusion_model.input_blocks.0.weight": torch.ones(2), "cond_stage_model.encoder.w": torch.ones(2)}
    torch.save(
        {"state_dict": others | under("first_stage_model.", other_scheme("kl", state("kl")))}, tmp_path / "sd.ckpt"
    )
    assert_same(imported(tmp_path / "sd.ckpt"), state("kl"))
    assert "1 tensor model.*, 1 tensor cond_stage_model.*" in capsys.readouterr().out


def test_a_module_that_was_saved_whole(tmp_path: Path) -> None:
    torch.save(nn.DataParallel(build_network("vqgan", VQ)), tmp_path / "a.pt")
    expected = torch.load(tmp_path / "a.pt", weights_only=False).module.state_dict()
    assert_same(imported(tmp_path / "a.pt"), expected)


def lightning_class() -> Any:
    """A class of a module that does not exist when the file is read, as pickled by reference."""
    name = "absent_lightning.callbacks"
    kind = type("ModelCheckpoint", (dict,), {"__module__": name, "__setstate__": lambda self, state: os.abort()})
    for part in (name.partition(".")[0], name):
        sys.modules[part] = types.ModuleType(part)
    vars(sys.modules[name])["ModelCheckpoint"] = kind
    return kind


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
def test_lightning_files_with_callbacks(
    legacy: bool, protocol: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = lightning_class()
    used = kind(monitor="loss")
    used.best = 3
    content = {"global_step": 9, "state_dict": OrderedDict(state()), "callbacks": {kind: used}, "loops": [kind, {1, 2}]}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    for name in ("absent_lightning", "absent_lightning.callbacks"):
        del sys.modules[name]
    assert_same(imported(tmp_path / "last.ckpt"), state())
    assert "objects of absent_lightning.callbacks.ModelCheckpoint" in capsys.readouterr().out
    assert not any(name.startswith("absent_lightning") for name in sys.modules)
    assert checkpoint.read_meta(tmp_path / "model").step == 9


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
def test_calls_in_a_pickle_are_named_and_not_made(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = str(tmp_path / "canary")
    evil = [Calls(os.mkdir, canary), Calls(eval, f"__import__('os').mkdir({canary!r})"), Calls(getattr, 1, "real")]
    torch.save({"model": state(), "optimizer": evil}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    assert_same(imported(tmp_path / "a.pt"), state())
    out = capsys.readouterr().out
    assert "WARNING: the file calls posix.mkdir, builtins.eval, which was not run" in out.replace(
        "__builtin__", "builtins"
    )
    assert not Path(canary).exists()


def test_a_pickle_cannot_change_the_functions_it_may_call(tmp_path: Path) -> None:
    """The opcode BUILD sets attributes of any object: of torch's own functions too, if it gets hold of them."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    build = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", build)
        archive.writestr("a/version", "3\n")
    assert run(tmp_path / "a.pt") == 2
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_diffusion_without_its_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g").mkdir()
    for folder in (tmp_path, tmp_path / "g"):
        torch.save({"model": flow_state()}, folder / "a.pt")
    assert run(tmp_path / "a.pt", "--num-heads", "2") == 0
    assert "import it with --component diffusion" in capsys.readouterr().out
    assert run(tmp_path / "g" / "a.pt", "--num-heads", "2", "--component", "diffusion") == 0
    assert "the file contains no flow" in capsys.readouterr().out
    meta = checkpoint.read_meta(tmp_path / "g" / "model")
    assert (meta.component, meta.flow) == ("diffusion", None)
    assert (checkpoint.load_component(tmp_path / "g" / "model")(torch.randn(1, 8, 4, 4)) > 0).all()


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "ema_model.module."])
def test_a_component_under_any_prefix(prefix: str, tmp_path: Path) -> None:
    torch.save({"model": under(prefix, flow_state())}, tmp_path / "a.pt")
    expected = {name.removeprefix("vector_field_regressor."): tensor for name, tensor in flow_state().items()}
    assert_same(imported(tmp_path / "a.pt", "--num-heads", "2"), expected)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a.pt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


def optimizer_state() -> dict[str, Any]:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    return optimizer.state_dict()


def integer_weights() -> dict[str, Tensor]:
    return state() | {"encoder.conv_in.weight": torch.ones(32, 3, 3, 3, dtype=torch.int8)}


BAD = {
    "empty": (lambda: b"", "is empty (0 bytes)"),
    "truncated zip": (lambda: saved(state())[:-500], "damaged, truncated or of another format"),
    "half a zip": (lambda: saved(state())[:5000], "damaged, truncated or of another format"),
    "truncated legacy": (
        lambda: saved(state(), _use_new_zipfile_serialization=False)[:-50],
        "damaged, truncated or of another format",
    ),
    "optimizer": (lambda: saved(optimizer_state()), "found the state of an optimizer alone; expected a component"),
    "nested optimizer": (
        lambda: saved({"optimizer": optimizer_state()}),
        "found optimizer (the state of an",
    ),
    "another network": (lambda: saved({"fc.weight": torch.ones(2)}), "found 1 tensor fc.*; expected a component"),
    "a tensor": (lambda: saved(torch.ones(2, 3)), "found one tensor [2, 3]; expected"),
    "text": (lambda: b"<!DOCTYPE html>", "is a web page"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "run `git lfs pull`"),
    "tar": (lambda: archive_of(saved(state())), "is a tar archive; unpack it"),
    "torchscript": (torchscript, "is a TorchScript archive"),
    "plain pickle": (lambda: pickle.dumps({"a": 1}), "expected a file of torch.save or safetensors"),
    "integers": (lambda: saved(integer_weights()), "encoder.conv_in.weight holds int8 instead of floating point"),
    "missing tensor": (
        lambda: saved({k: v for k, v in state().items() if k != "decoder.conv_out.bias"}),
        "found a vqgan autoencoder: weights do not fit the network: lacks the tensor decoder.conv_out.bias",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_say_what_was_found_and_expected(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = BAD[name]
    (tmp_path / "a.pt").write_bytes(make())
    assert run(tmp_path / "a.pt") == 2
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "a.pt") in error and error.count("\n") == 1
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("content", [b"torn", None])
def test_bad_safetensors(content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(state(), tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content or whole[:-10])
    assert run(tmp_path / "a.safetensors") == 2
    assert "expected a file of safetensors" in capsys.readouterr().err
