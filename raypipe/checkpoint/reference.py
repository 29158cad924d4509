"""Convert checkpoints of other programs to model folders: of the reference code, latent diffusion and diffusers."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.checkpoint import naming, pickles, reference_names, shared, source
from raypipe.checkpoint.diffusers_folder import DiffusersFolder
from raypipe.checkpoint.folder import (
    MODEL,
    UNUSED,
    Meta,
    autoencoder_hash,
    autoencoder_meta,
    load_autoencoder,
    read_meta,
    staged,
    weights_hash,
    write_model,
)
from raypipe.checkpoint.reconstruction import RANGES, check_reconstruction
from raypipe.checkpoint.reference_names import Networks
from raypipe.checkpoint.source import Source
from raypipe.checkpoint.tensors import fill, write_tree
from raypipe.common.errors import UserError
from raypipe.data.shards import Shards
from raypipe.models.autoencoder import INPUT_RANGE, Autoencoder, build_network
from raypipe.models.components import build_component

log = logging.getLogger(__name__)

EXPECTED = (
    "expected a component of the reference code (with a tensor *project_in.1.weight) or a VQ or KL autoencoder (with a "
    "tensor *encoder.conv_in.weight, named as by CompVis or diffusers)"
)


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint.

    folder: of its main network. parts: Meta of each network in the file, by folder. notes: one line each on what was
    skipped or assumed, and on the reconstruction of frames.
    """

    folder: Path
    parts: Mapping[Path, Meta]
    notes: list[str]


@dataclass(frozen=True)
class Options:
    """Options of `import_file`."""

    component: config.Component | None = None
    num_heads: int = 8
    prefix: str | None = None
    shards: Shards | None = None


@dataclass(frozen=True)
class _Choice:
    """The networks of a file to import. keys: lead to their state dict. state: its tensors, by their plain names.

    names: plain name of each tensor, by its name in the file. others: prefixes of the networks that are not imported.
    """

    keys: source.Keys
    state: dict[str, Tensor]
    names: dict[str, str]
    networks: Networks
    others: list[str]


@dataclass(frozen=True)
class _Part:
    """An imported network of a checkpoint file."""

    meta: Meta
    names: dict[str, str]
    """Names, without prefix, of the tensors that the network uses -> their names in the model folder."""
    hash: str
    """`weights_hash` of the network."""
    latents: str | None
    """`autoencoder_hash` of an autoencoder."""
    reference: str
    """Path of the network's folder, relative to the imported folder."""


def import_file(
    file: str | Path,
    out: str | Path,
    *,
    component: config.Component | None = None,
    num_heads: int = 8,
    prefix: str | None = None,
    shards: Shards | None = None,
) -> Imported:
    """Convert a checkpoint file, or a diffusers folder of an autoencoder, to a model folder.

    A component's file also contains other networks: its autoencoder, and for a diffusion also the flow and denoiser.
    These are stored in subfolders of `out`, unless a folder next to `out` already contains them; `out` then refers to
    that folder.

    component: component in the file; None: diffusion if the file contains a flow, else inferred from the numbers of
    channels (see `describe_component`). num_heads: number of attention heads. prefix: of the tensors to import, if the
    file contains several networks of a kind; None: the first that is no moving average. shards: training frames that
    the autoencoder reconstructs, which sets the range of its input.

    Raises UserError if the file is missing or damaged or contains no known network, and if `out` exists.
    """
    file, out = Path(file), Path(out)
    if out.exists():
        raise UserError(f"{out}: already exists; choose another folder to import to")
    found = source.read(file)
    alarm = pickles.warning(found.skipped)
    notes = [alarm] if alarm else []
    try:
        chosen = _choose(found, prefix)
        with staged(out) as temporary:
            importing = _Importing(chosen, found, temporary, out, Options(component, num_heads, prefix, shards), notes)
            parts = importing.write_parts()
            write_tree(temporary / UNUSED, importing.record(parts))
    except UserError as error:
        raise UserError(f"{file}: {error}" + (f"; {alarm}" if alarm else "")) from None
    return Imported(out, {shared.at(out, part.reference): part.meta for part in reversed(parts.values())}, notes)


def _choose(found: Source, prefix: str | None) -> _Choice:
    """Choose the networks to import. Raises UserError if there are none."""
    wanted = "" if prefix is None else f"{prefix.rstrip('.')}."
    choices: list[tuple[str, _Choice]] = []
    for keys, tensors in source.state_dicts(found.content):
        names = naming.plain_names(tensors)
        state = {names[name]: tensor for name, tensor in tensors.items()}
        entry = "".join(f"{key}." for key in keys)
        for networks in reference_names.find_networks(n for n in state if f"{entry}{n}".startswith(wanted)):
            choices.append((f"{entry}{networks.prefix}", _Choice(keys, state, names, networks, [])))
    if not choices:
        where = f" under the prefix {wanted!r}" if wanted else ""
        do = "without --prefix, or with another" if wanted else "give a file that contains the weights of one of these"
        raise UserError(
            f"no network that raypipe knows{where}: found {source.summary(found.content)}; {EXPECTED}; {do}"
        )
    choices.sort(key=lambda choice: reference_names.is_average(choice[0]))
    return dataclasses.replace(choices[0][1], others=[label for label, _ in choices[1:]])


@dataclass(frozen=True)
class _Importing:
    """Writes the model folders of the networks in a file.

    folder: temporary folder that becomes `out`. out: next to it, folders are searched for networks that need not be
    stored again. notes: lines to tell the user are added to it.
    """

    chosen: _Choice
    source: Source
    folder: Path
    out: Path
    options: Options
    notes: list[str] = field(default_factory=list)

    def write_parts(self) -> dict[str, _Part]:
        """Write each network; referenced networks are written before those that use them."""
        networks = self.chosen.networks
        prefixes = {part: prefix for prefix, part in networks.routes.items()}
        parts: dict[str, _Part] = {}
        for part in ("autoencoder", "flow", "denoiser", ""):
            if part not in prefixes:
                continue
            if prefixes[part] in networks.components:
                module, meta, names = self._component(prefixes[part], part, parts)
            else:
                module, meta, names = self._autoencoder(prefixes[part], part)
            place = self.folder / part
            place.mkdir(exist_ok=True)
            meta = dataclasses.replace(meta, step=0 if part else _step(self.source.content))
            write_model(place, module, meta)
            digest = weights_hash(place)
            latents = autoencoder_hash(place) if meta.kind == "autoencoder" else None
            same = shared.find(self.out, digest, meta) if part else None
            if same is not None:
                shutil.rmtree(place)
            parts[part] = _Part(meta, names, digest, latents, part if same is None else shared.refer(self.out, same))
        if self.options.shards is not None and not any(part.latents for part in parts.values()):
            raise UserError("contains no autoencoder to reconstruct frames of --dataset with; omit --dataset")
        return parts

    def _component(self, prefix: str, part: str, parts: Mapping[str, _Part]) -> tuple[nn.Module, Meta, dict[str, str]]:
        """Build a component, its Meta and the names of its tensors. parts: the networks that it refers to."""
        tensors = reference_names.used_by_component(self.chosen.state, prefix)
        autoencoder, flow = parts.get("autoencoder"), parts.get("flow")
        embedded = cast(config.Component, part) if part else None
        kind = embedded or self.options.component or ("diffusion" if flow else None)
        channels = autoencoder.meta.latent_channels if autoencoder else None
        spec = reference_names.describe_component(tensors, kind, self.options.num_heads, channels)
        with torch.device("meta"):
            module = build_component(spec.component, spec.model, spec.latent_channels)
        _fill(cast(nn.Module, module.network), tensors, spec.component)
        if kind is None and spec.component == "flow":
            self.notes.append(
                "imported as a flow: a diffusion has the same tensors; if it is one that was saved without its flow, "
                "import it with --component diffusion"
            )
        if spec.component == "diffusion" and flow is None:
            self.notes.append(
                "the file contains no flow: a diffusion only fits the flow that it was trained on; import that flow too"
            )
        uses_flow = flow if spec.component == "diffusion" else None
        meta = Meta(
            spec.latent_channels,
            spec.component,
            spec.model,
            flow=uses_flow.reference if uses_flow else None,
            flow_hash=uses_flow.hash if uses_flow else None,
            autoencoder_hash=autoencoder.latents if autoencoder else None,
        )
        return module, meta, {name: name for name in tensors}

    def _autoencoder(self, prefix: str, part: str) -> tuple[nn.Module, Meta, dict[str, str]]:
        """Build an autoencoder, its Meta and the names of its tensors, and reconstruct frames if there are any."""
        tensors = reference_names.used_by_autoencoder(self.chosen.state, prefix)
        levels = naming.count_levels(tensors)
        named = {naming.to_diffusers(name, levels): name for name in tensors}
        groups = DiffusersFolder(self.source.config, {}).groups
        spec = reference_names.describe_autoencoder({name: tensors[own] for name, own in named.items()}, groups)
        with torch.device("meta"):
            network = build_network(spec.network, spec.arguments)
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        ours = {named.get(naming.to_diffusers(name, levels)): name for name in shapes}
        names = {name: ours.get(name, name) for name in tensors}
        weights = {ours: _squeezed(tensors[name], shapes.get(ours)) for name, ours in names.items()}
        module = Autoencoder(_fill(network, weights, f"{spec.network} autoencoder"))
        extra: dict[str, Any] = {}
        if self.options.shards is not None:
            # Components were trained on the latents of the usual range, whatever suits the autoencoder better.
            check = check_reconstruction(module, self.options.shards, (INPUT_RANGE,) if part else RANGES)
            extra = {"psnr": check.psnr[check.best], "psnr_frames": check.frames}
            self.notes.extend(line for line in (check.describe(), check.warning()) if line)
        return module, autoencoder_meta(module, extra=extra), names

    def record(self, parts: Mapping[str, _Part]) -> dict[str, Any]:
        """What `export_file` needs to write the file again (see `export._new_record`)."""
        chosen = self.chosen
        routes = chosen.networks.routes
        used = {f"{p}{name}": f"{p}{ours}" for p, part in routes.items() for name, ours in parts[part].names.items()}
        unused = {name: tensor for name, tensor in chosen.state.items() if name not in used}
        if self.source.format == source.TORCH:
            wrapper: Any = list(chosen.keys)
            rest, left_out = source.without(self.source.content, chosen.keys)
        else:
            wrapper, left_out = self.source.format, []
            rest = {"config": self.source.config} if self.source.config else {}
        objects = pickles.describe_skipped(self.source.skipped)
        skipped = [objects] if objects else []
        skipped += [f"{source.count_by_prefix(list(unused))} (kept for export)"] if unused else []
        skipped += [f"the entries {', '.join(left_out)} (not plain values, not kept)"] if left_out else []
        skipped += [f"the network {label}* (--prefix {label} imports it instead)" for label in chosen.others]
        if skipped:
            self.notes.append(f"skipped: {'; '.join(skipped)}")
        originals = {name: chosen.state[plain] for name, plain in chosen.names.items()}
        return {
            "wrapper": wrapper,
            "names": [
                [name, used.get(chosen.names[name], chosen.names[name]), str(tensor.dtype)[6:], list(tensor.shape)]
                for name, tensor in originals.items()
            ],
            "routes": {prefix: parts[part].reference for prefix, part in routes.items()},
            "shared": {part.reference: part.hash for name, part in parts.items() if part.reference != name},
            "unused": unused,
            "rest": rest,
        }


def _squeezed(tensor: Tensor, shape: torch.Size | None) -> Tensor:
    """Weights of an attention layer as a 1x1 convolution [n, n, 1, 1] or as a matrix [n, n], whichever `shape` is."""
    if (
        shape is not None
        and tensor.ndim != len(shape)
        and tensor.shape[:2] == shape[:2]
        and tensor.numel() == shape.numel()
    ):
        return tensor.reshape(shape)
    return tensor


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> nn.Module:
    try:
        return fill(network, tensors, what)
    except UserError as error:
        raise UserError(
            f"found a {error}; the file is incomplete, or of another architecture: give a complete one"
        ) from None


def _step(content: Mapping[str, Any]) -> int:
    """Training steps of a checkpoint; 0 if it does not contain their number."""
    step = content.get("global_step", 0)
    return step if isinstance(step, int) and not isinstance(step, bool) else 0


def take_autoencoder(path: Path, folder: Path, shards: Shards | None = None) -> None:
    """Create the model folder of a trained autoencoder.

    path: a model folder, which is copied, or a file or diffusers folder that `import_file` accepts. shards: see
    `import_file`. Raises UserError if it is anything else or does not contain an autoencoder.
    """
    if (path / MODEL).is_file():
        load_autoencoder(path)  # raises if it is not an autoencoder
        with staged(folder) as temporary:
            shutil.copytree(path, temporary, dirs_exist_ok=True)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        done = import_file(path, Path(scratch) / "model", shards=shards)
        if read_meta(done.folder).kind != "autoencoder":
            raise UserError(
                f"{path}: contains a component, not an autoencoder; give the checkpoint file of an autoencoder"
            )
        done.folder.rename(folder)
    for note in done.notes:
        log.warning("%s: %s", path, note)
