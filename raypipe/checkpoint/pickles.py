"""Read files of `torch.save` without running anything in them.

A pickle can call any function. `torch.load(weights_only=True)` therefore refuses every file with a class that torch
does not know, such as the callbacks in checkpoints of PyTorch Lightning. This reader loads such files: it builds
tensors and plain containers, and replaces every other class or function by an inert placeholder.
"""

from __future__ import annotations

import collections
import pickle
import tarfile
import types
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raypipe.common.errors import UserError, first_line

RUNS_CODE = (
    "posix",
    "nt",
    "os",
    "sys",
    "subprocess",
    "runpy",
    "pty",
    "shutil",
    "socket",
    "importlib",
    "pickle",
    "code",
)
"""Modules that no checkpoint needs, but which a malicious one calls."""
RUNS_CODE_BUILTINS = ("eval", "exec", "compile", "open", "__import__", "breakpoint", "input")


class Placeholder:
    """Stands for an object of a class that is not loaded: accepts whatever a pickle does to it, and does nothing.

    state: what the pickle would have restored into the object.
    """

    state: Any = None
    dump_patches = False
    """torch.load reads it if the file holds the source of the class; True would let it write a file."""

    def __new__(cls, *_: Any, **__: Any) -> Placeholder:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Function:
    """A function that a pickle may call but not change: pickles can set the attributes of plain functions."""

    __slots__ = ("_call",)

    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError(f"sets {name}")


def _rebuild_typed(build: Callable[..., Any], _kind: Any, arguments: tuple[Any, ...], _state: Any) -> Any:
    """A tensor of a subclass, as a plain tensor. `build` comes from `ALLOWED` or is a placeholder."""
    return build(*arguments)


def _rebuild_parameter(data: Any, requires_grad: bool, hooks: Any, _state: Any = None) -> Any:
    """A parameter, as a plain tensor."""
    return data


def _encode(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 call for `bytes`."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _Function(torch._utils._rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(torch._utils._rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_rebuild_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuild_typed),
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _Function(_encode),
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, bytearray, complex)
    },
    **{("torch", str(kind)[6:]): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
}
"""Classes and functions that a file may use; all are immutable. Nothing else that it names is imported or called."""


def read_pickle(file: Path) -> tuple[Any, list[str]]:
    """Content of a file of `torch.save`, and the names of the classes and functions that placeholders replace.

    Objects of these are instances of `Placeholder`. Raises UserError if the file is not of `torch.save` or is damaged.
    """
    if tarfile.is_tarfile(file):
        raise UserError(f"{file}: is a tar archive; unpack it, and give the checkpoint file inside it")
    skipped: dict[str, None] = {}
    try:
        _refuse_torchscript(file)
        # weights_only=True would refuse files that hold objects of unknown classes, such as callbacks of Lightning. The
        # pickle module given here builds placeholders for them, and otherwise only what ALLOWED lists.
        with file.open("rb") as opened, warnings.catch_warnings(action="ignore"):
            content = torch.load(opened, map_location="cpu", weights_only=False, pickle_module=_restricted(skipped))
    except UserError:
        raise
    except Exception as error:  # torch raises many exception types for invalid files
        named = "".join(f"; {line}" for line in (warning(skipped), describe_skipped(skipped)) if line)
        raise UserError(
            f"{file}: expected a file of torch.save or safetensors, found {file.stat().st_size} bytes that are "
            f"damaged, truncated or of another format ({first_line(error)[:120]}); copy or download it again{named}"
        ) from None
    return plain_modules(content), list(skipped)


def _restricted(skipped: dict[str, None]) -> types.ModuleType:
    """What `torch.load` needs of a pickle module; `skipped` collects the names that are replaced."""
    made: dict[str, type[Placeholder]] = {}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in ALLOWED:
                return ALLOWED[module, name]
            full = f"{module}.{name}"
            skipped[full] = None
            return made.setdefault(full, type("Placeholder", (Placeholder,), {"__module__": __name__, "name": full}))

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    restricted = types.ModuleType("raypipe.checkpoint.pickles.restricted")
    vars(restricted).update(Unpickler=Unpickler, load=load)
    return restricted


def _refuse_torchscript(file: Path) -> None:
    """torch.load would hand such files to torch.jit.load, which runs code in them."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        if any(name.endswith("/constants.pkl") or name == "constants.pkl" for name in archive.namelist()):
            raise UserError(
                f"{file}: is a TorchScript archive, which contains code; expected weights: load it where you trust it, "
                "and save its state_dict() with torch.save"
            )


def plain_modules(value: Any) -> Any:
    """Replace modules that were saved whole (`torch.save(model)`), now placeholders, by their state dicts."""
    if isinstance(value, Placeholder):
        tensors = _module_tensors(value, "")
        return tensors or value
    if isinstance(value, dict):
        return {key: plain_modules(item) for key, item in value.items()}
    return value


def _module_tensors(module: Any, prefix: str, depth: int = 0) -> dict[str, Tensor]:
    state = module.state if isinstance(module, Placeholder) and isinstance(module.state, dict) else {}
    own, children = [{**_dict(state.get("_parameters")), **_dict(state.get("_buffers"))}, _dict(state.get("_modules"))]
    tensors = {f"{prefix}{name}": tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    for name, child in children.items() if depth < 50 else ():
        tensors |= _module_tensors(child, f"{prefix}{name}.", depth + 1)
    return tensors


def _dict(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def runs_code(name: str) -> bool:
    """Whether a class or function named in a pickle is one that only a malicious file needs."""
    module, _, function = name.rpartition(".")
    if module in ("builtins", "__builtin__"):
        return function in RUNS_CODE_BUILTINS
    return module.split(".")[0] in RUNS_CODE


def warning(names: Iterable[str]) -> str | None:
    """One line that names the functions that a malicious pickle would have called; None if there are none."""
    bad = [name for name in names if runs_code(name)]
    if not bad:
        return None
    return f"WARNING: the file calls {', '.join(bad)}, which was not run; do not load it with other programs"


def describe_skipped(names: Iterable[str]) -> str | None:
    """Which other classes and functions placeholders replace, in a few words; None if there are none."""
    others = [name for name in names if not runs_code(name)]
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    return f"objects of {', '.join(others[:4])}{more} (no code in them was run)" if others else None
