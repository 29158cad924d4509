"""The published networks' answers, met through the files that a user would import."""

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raypipe import load_autoencoder, load_component
from raypipe.checkpoint.__main__ import main
from raypipe.models.components import Diffusion

FOLDER = Path(__file__).parents[1] / "golden"
COMPONENTS = [f"{size}/{letter}" for size in ("tiny", "tiny_bn") for letter in "fdg"]
AUTOENCODERS = ["vqvae", "taming/f8_small", "taming/f8", "taming/f16"]
NAMES = {"f": "flow", "d": "denoiser", "g": "diffusion"}


@cache
def cases() -> dict[str, Any]:
    spec = spec_from_file_location("golden", FOLDER / "golden.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["golden"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module.load_cases(FOLDER)  # type: ignore[no-any-return]


def tensors(case: str) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in cases()[case].state_dict.items()}


def assert_answers(found: Tensor, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() <= 1e-4 * np.abs(expected).max()


def test_every_case_is_tested() -> None:
    assert sorted(cases()) == sorted(COMPONENTS + AUTOENCODERS)


@torch.no_grad()
@pytest.mark.parametrize("case", COMPONENTS)
def test_component_answers(case: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "file.pth", tmp_path / "model"
    torch.save({"model": {f"vector_field_regressor.{n}": t for n, t in tensors(case).items()}}, file)
    assert main(["import", str(file), "--out", str(folder), "--component", NAMES[case[-1]]]) == 0
    module, arrays = load_component(folder), cases()[case].arrays
    answer = module.raw if isinstance(module, Diffusion) else module
    assert_answers(answer(torch.from_numpy(arrays["in"]), None), arrays["out"])


@torch.no_grad()
@pytest.mark.parametrize("case", AUTOENCODERS)
def test_autoencoder_answers(case: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "file.ckpt", tmp_path / "model"
    state = tensors(case)
    torch.save(
        {"model": {f"module.{n}": t for n, t in state.items()}} if case == "vqvae" else {"state_dict": state}, file
    )
    assert main(["import", str(file), "--out", str(folder)]) == 0
    autoencoder, arrays = load_autoencoder(folder), cases()[case].arrays
    latents = autoencoder.encode(torch.from_numpy(arrays["in"]))
    assert_answers(latents, arrays["latents"])
    quantized = autoencoder.network.quantizer(latents).latents
    decoded = autoencoder.network.decode(quantized)
    assert_answers(decoded, arrays["decoded"])
    assert torch.equal(autoencoder.decode(latents), decoded.clamp(-1, 1))
    if "quantized" in arrays:
        assert_answers(quantized, arrays["quantized"])
