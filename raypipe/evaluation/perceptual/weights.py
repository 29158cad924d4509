"""The files of weights that a user gives for FVD, LPIPS and JEDi: what is accepted, checks, and the networks."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from raypipe.common.errors import UserError, first_line
from raypipe.common.files import sha256
from raypipe.config import Evaluation, Experiment
from raypipe.evaluation.perceptual import i3d, lpips, vjepa
from raypipe.evaluation.perceptual.efflite0 import weights_file

Kind = Literal["i3d", "lpips", "vjepa"]
Tensors = Mapping[str, Tensor]
PROBE = "ssv2-probe.pth.tar"
"""The file with the pooler of V-JEPA's probe, in the folder of its encoder."""
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1, 1)
"""Mean and standard deviation of ImageNet's pixels from 0 to 1, for clips [n, 3, T, H, W]."""
ACCEPTED: Mapping[Kind, str] = {
    "i3d": "i3d_torchscript.pt (https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt) or i3d_pretrained_400.pt "
    "(a state dict, see https://github.com/wilson1yan/VideoGPT)",
    "lpips": "torch.save(lpips.LPIPS(net='alex').state_dict(), FILE), of https://github.com/richzhang/"
    "PerceptualSimilarity, or vgg16.pt (TorchScript, https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/"
    "pretrained/metrics/vgg16.pt)",
    "vjepa": f"vith16.pth.tar with {PROBE} in the same folder (both from https://dl.fbaipublicfiles.com/jepa/vith16/), "
    "or TorchScript from [n, 3, T, 224, 224], normalized as for ImageNet, to [n, 1280]",
}
WIDTHS: Mapping[Kind, int] = {"i3d": i3d.WIDTH, "vjepa": vjepa.WIDTH}
"""Number of features of a clip."""


@dataclass(frozen=True)
class _Read:
    """The content of a file: a TorchScript module, or else what `torch.load` returned."""

    script: torch.jit.ScriptModule | None
    content: Any = None

    def tensors(self, *keys: str) -> Tensors:
        """The state dict, which may be under the first of the keys that there is, without the prefixes of wrappers."""
        found = next((self.content[key] for key in keys if key in self.content), self.content)
        return {name.replace("module.", "").replace("backbone.", ""): tensor for name, tensor in found.items()}


def weights_files(evaluation: Evaluation) -> dict[Kind, Path]:
    """The files of weights that are given."""
    given: dict[Kind, str | None] = {
        "i3d": evaluation.i3d_weights,
        "lpips": evaluation.lpips_weights,
        "vjepa": evaluation.vjepa_weights,
    }
    return {kind: Path(path).expanduser() for kind, path in given.items() if path is not None}


def check_weights(experiment: Experiment) -> None:
    """Raise UserError unless every file of weights exists and gives scores of clips of this length and size.

    Each network scores a grey clip, so that nothing else is scored with weights that do not fit.
    """
    size, evaluation = experiment.dataset.image_size, experiment.evaluation
    clip = torch.zeros(1, experiment.model.num_input_frames + evaluation.horizon, 3, size, size)
    for kind, path in weights_files(evaluation).items():
        network = load_network(kind, path)
        try:
            with torch.no_grad():
                found = list(network(*([clip[0]] * 2 if kind == "lpips" else [clip])).shape)
        except (RuntimeError, TypeError, ValueError) as error:
            shape = f"clips of {clip.shape[1]} frames of {size}x{size} pixels"
            raise _refused(kind, path, f"cannot score {shape} ({_last_line(error)})") from None
        expected = [clip.shape[1]] if kind == "lpips" else [1, WIDTHS[kind]]
        if found != expected:
            raise _refused(kind, path, f"its output is {found} instead of {expected}")


def weights_hashes(evaluation: Evaluation) -> dict[str, str | None]:
    """sha256 of the weights of each network: null for a kind that is not given; the package's only if it is there."""
    given, bundled = weights_files(evaluation), weights_file()
    found: dict[str, str | None] = {kind: _hash(kind, given[kind]) if kind in given else None for kind in ACCEPTED}
    return found | ({"efflite0": sha256(bundled)} if bundled is not None else {})


def load_network(kind: Kind, path: Path) -> nn.Module:
    """The network of a file. Raises UserError, in one line, if there is no such file, or if it holds something else.

    i3d, vjepa: clips [n, T, 3, H, W] in [-1, 1] to features [n, D]. lpips: two batches of frames [n, 3, H, W] in
    [-1, 1] to their distances [n].
    """
    read = _read(kind, path)
    try:
        if read.script is not None:
            return _Scripted(kind, read.script).eval()
        return _LOADERS[kind](read, path).eval()
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise _refused(kind, path, f"holds the weights of another network ({_last_line(error)})") from None


class _Scripted(nn.Module):
    """A TorchScript network."""

    def __init__(self, kind: Kind, script: torch.jit.ScriptModule) -> None:
        super().__init__()
        self._kind, self._script = kind, script

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        found: Tensor
        if self._kind == "i3d":
            pixels = 127.5 * (x.transpose(1, 2) + 1)
            found = self._script(pixels, rescale=True, resize=True, return_features=True)
        elif self._kind == "vjepa":
            found = self._script(_for_imagenet(x))
        else:
            assert y is not None
            first, second = (self._script(127.5 * (t + 1), resize_images=False, return_lpips=True) for t in (x, y))
            found = (first - second).square().sum(1)
        return found


class _Clips(nn.Module):
    """A network of clips, with what is done to their frames before."""

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._network, self._prepare = network, prepare

    def forward(self, clips: Tensor) -> Tensor:
        found: Tensor = self._network(self._prepare(clips))
        return found


def _load_i3d(read: _Read, path: Path) -> nn.Module:
    network = i3d.I3D()
    network.load_state_dict(dict(read.tensors()))
    return _Clips(network, lambda clips: clips.transpose(1, 2))


def _load_lpips(read: _Read, path: Path) -> nn.Module:
    network = lpips.Lpips()
    tensors = read.tensors()
    network.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith("lins.")})
    return network


def _load_vjepa(read: _Read, path: Path) -> nn.Module:
    probe = path.with_name(PROBE)
    encoder, pooler = read.tensors("target_encoder", "encoder"), _read("vjepa", probe).tensors("classifier")
    with torch.device("meta"):
        network = vjepa.VJepa()
    named = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    named |= {name: tensor for name, tensor in pooler.items() if name.startswith("pooler.")}
    network.load_state_dict(named, assign=True)
    return _Clips(network, _for_imagenet)


_LOADERS: Mapping[Kind, Callable[[_Read, Path], nn.Module]] = {
    "i3d": _load_i3d,
    "lpips": _load_lpips,
    "vjepa": _load_vjepa,
}


def _for_imagenet(clips: Tensor) -> Tensor:
    """Clips [n, T, 3, H, W] in [-1, 1] to [n, 3, T, 224, 224]; ImageNet would then have the mean 0 and the sd 1."""
    frames = functional.interpolate(clips.flatten(0, 1), (vjepa.SIZE,) * 2, mode="bilinear", align_corners=False)
    mean, std = IMAGENET.to(clips).unbind()
    found: Tensor = ((frames.unflatten(0, clips.shape[:2]).transpose(1, 2) + 1) / 2 - mean) / std
    return found


def _read(kind: Kind, path: Path) -> _Read:
    if not path.is_file():
        raise _refused(kind, path, "no such file")
    packed = zipfile.is_zipfile(path)
    try:
        if packed and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
            return _Read(torch.jit.load(str(path), map_location="cpu"))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except Exception as error:  # a damaged file raises many kinds
        raise _refused(kind, path, f"cannot be read ({first_line(error)})") from None
    if not isinstance(content, Mapping):
        raise _refused(kind, path, f"holds a {type(content).__name__} instead of weights")
    return _Read(None, content)


def _refused(kind: Kind, path: Path, why: str) -> UserError:
    return UserError(f"evaluation.{kind}_weights: {path}: {why}; accepted: {ACCEPTED[kind]}")


def _last_line(error: Exception) -> str:
    """The last line of a message: that of TorchScript begins with a traceback, that of a state dict with its class."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _hash(kind: Kind, path: Path) -> str:
    """sha256 of a file, and of the file that belongs to it."""
    probe = path.with_name(PROBE)
    files = [path, probe] if kind == "vjepa" and probe.is_file() else [path]
    return "+".join(sha256(file) for file in files)
