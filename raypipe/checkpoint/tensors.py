"""Read and write state dicts and optimizer states as safetensors, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raypipe.common.errors import UserError, first_line


def unwrap(module: nn.Module) -> nn.Module:
    """The module without the wrappers of DDP and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and isinstance(module, nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module, without wrappers, as contiguous tensors on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in unwrap(module).state_dict().items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """Replace all tensors of a module, which may be on the meta device. Raises UserError as `check_fit`."""
    check_fit(module, tensors, source)
    expected = module.state_dict()
    module.load_state_dict({name: tensors[name].to(expected[name].dtype) for name in expected}, assign=True)
    return module


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError, starting with `source`, unless the tensors have the names and shapes of the module's."""
    expected = module.state_dict()
    wrong = [f"lacks the tensor {name}" for name in expected.keys() - tensors.keys()]
    wrong += [f"has an unknown tensor {name}" for name in tensors.keys() - expected.keys()]
    wrong += [
        f"{name} is {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    wrong += [
        f"{name} holds {str(tensors[name].dtype)[6:]} instead of floating point numbers"
        for name, tensor in expected.items()
        if name in tensors and tensor.is_floating_point() and not tensors[name].is_floating_point()
    ]
    if wrong:
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise UserError(f"{source}: weights do not fit the network: {'; '.join(sorted(wrong)[:2])}{more}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file. Raises UserError if it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); restore it or train again") from None


def write_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values as safetensors; their structure is metadata.

    Raises UserError for values of other types.
    """
    tensors: dict[str, Tensor] = {}
    save_file(tensors, path, metadata={"tree": json.dumps(pack(tree, tensors))})


def read_tree(path: Path) -> Any:
    """Read what `write_tree` wrote. Raises UserError for other files."""
    try:
        with safe_open(path, framework="pt") as file:
            return _unpack(json.loads((file.metadata() or {})["tree"]), file)
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); restore it or train again") from None


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON form of `value`. Copies of its tensors are added to `tensors`. Raises UserError for other types."""
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if isinstance(value, Mapping):
        for key in value:
            if not (key is None or isinstance(key, bool | int | float | str)):
                raise UserError(f"a key of type {type(key).__name__} cannot be stored without pickle")
        return {"dict": [[key, pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [pack(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"a {type(value).__name__} cannot be stored without pickle")


def _unpack(value: Any, file: Any) -> Any:
    """The inverse of `pack`, reading tensors from an open safetensors file."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return file.get_tensor(content)
    if kind == "dict":
        return {key: _unpack(item, file) for key, item in content}
    items = [_unpack(item, file) for item in content]
    return tuple(items) if kind == "tuple" else items
