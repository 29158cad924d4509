"""Read checkpoints of other programs: files of torch.save or safetensors, and diffusers folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from raypipe.checkpoint import diffusers_folder
from raypipe.checkpoint.pickles import read_pickle
from raypipe.checkpoint.tensors import pack
from raypipe.common.errors import UserError, first_line

TORCH, SAFETENSORS, DIFFUSERS = "torch", "safetensors", "diffusers"
"""Formats of a checkpoint: a file of torch.save, a file of safetensors, a diffusers folder."""
DEPTH = 4
"""How deep state dicts are searched in nested dicts."""

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A checkpoint of another program.

    content: nested dicts, lists and tensors. format: TORCH, SAFETENSORS or DIFFUSERS. config: `config.json` of a
    diffusers folder. skipped: names of the classes and functions in a pickle that were replaced by placeholders.
    """

    content: Any
    format: str
    config: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def read(path: Path) -> Source:
    """Read a file or diffusers folder. The format is detected from the content; nothing in a pickle is run.

    Raises UserError if it is missing, empty, damaged or of another format.
    """
    if path.is_dir():
        found = diffusers_folder.read(path)
        return Source(found.state, DIFFUSERS, found.config)
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a checkpoint (.pth, .pt, .ckpt, .safetensors) or a diffusers folder"
        )
    if path.name in diffusers_folder.READABLE and (path.parent / diffusers_folder.CONFIG).is_file():
        found = diffusers_folder.read(path.parent, path.name)
        return Source(found.state, DIFFUSERS, found.config)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise UserError(f"{path}: is empty (0 bytes); copy or download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: is a Git LFS pointer instead of the file itself; run `git lfs pull`")
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path}: is a web page instead of a checkpoint; download the file itself")
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return Source(_read_safetensors(path), SAFETENSORS)
    content, skipped = read_pickle(path)
    return Source(content, TORCH, skipped=skipped)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: expected a file of safetensors, found {path.stat().st_size} bytes that are damaged, truncated "
            f"or of another format ({first_line(error)}); copy or download it again"
        ) from None


def state_dicts(content: Any, path: Keys = ()) -> Iterator[tuple[Keys, dict[str, Tensor]]]:
    """The dicts in `content` that hold tensors, and the keys that lead to each. Optimizer states are left out."""
    if not isinstance(content, Mapping) or any("optim" in key for key in path[-1:]):
        return
    tensors = {key: item for key, item in content.items() if isinstance(key, str) and isinstance(item, Tensor)}
    if tensors:
        yield path, tensors
    for key, item in content.items() if len(path) < DEPTH else ():
        if isinstance(key, str):
            yield from state_dicts(item, (*path, key))


def without(content: Any, path: Keys) -> tuple[dict[str, Any], list[str]]:
    """`content` without the tensors of the state dict at `path`, and the entries that cannot be stored without pickle.

    Those entries are left out.
    """
    if not path:
        return _plain({key: item for key, item in content.items() if not isinstance(item, Tensor)})
    inner, left_out = without(content[path[0]], path[1:])
    rest, more = _plain({**content, path[0]: inner})
    return rest, [*(f"{path[0]}.{name}" for name in left_out), *more]


def put(content: Mapping[str, Any], path: Keys, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `without`: `content` with the tensors of the state dict at `path`."""
    if not path:
        return {**state, **content}
    base = content if path[0] in content else {path[0]: {}, **content}
    return {**base, path[0]: put(base[path[0]], path[1:], state)}


def _plain(entries: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """The entries that can be stored without pickle, and the names of the others."""
    kept, left_out = {}, []
    for name, value in entries.items():
        try:
            pack({name: value}, {})
        except UserError:
            left_out.append(name if isinstance(name, str) else type(name).__name__)
        else:
            kept[name] = value
    return kept, left_out


def summary(content: Any) -> str:
    """What a checkpoint holds, in a few words, for messages."""
    if isinstance(content, Tensor):
        return f"one tensor {list(content.shape)}"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    if "param_groups" in content:
        return "the state of an optimizer alone"
    found = [f"{key} {kind(value)}" for key, value in content.items() if not isinstance(value, Tensor)]
    tensors = [key for key, value in content.items() if isinstance(value, Tensor)]
    if tensors:
        found.insert(0, count_by_prefix(tensors))
    return _some(found, "; ")


def kind(value: Any) -> str:
    """What an entry holds, in brackets."""
    if not isinstance(value, Mapping):
        return f"({type(value).__name__})"
    if "param_groups" in value or "state" in value:
        return "(the state of an optimizer)"
    tensors = [str(key) for key, item in value.items() if isinstance(item, Tensor)]
    return f"({count_by_prefix(tensors)})" if tensors else f"(a dict of {len(value)})"


def count_by_prefix(names: list[str]) -> str:
    """Numbers of tensors by the first part of their names: `20 tensors encoder.*, 1 tensor bias`."""
    counts: dict[str, int] = {}
    for name in names:
        top, dot, _ = str(name).partition(".")
        counts[f"{top}.*" if dot else top] = counts.get(f"{top}.*" if dot else top, 0) + 1
    return _some([f"{count} tensor{'s' * (count > 1)} {top}" for top, count in counts.items()], ", ")


def _some(items: list[str], separator: str) -> str:
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return separator.join(items[:5]) + more
