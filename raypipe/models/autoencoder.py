"""`Autoencoder`: wraps one of several networks and scales its latents to unit standard deviation."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from raypipe import config
from raypipe.common.errors import UserError
from raypipe.models.conv import ConvAutoencoder
from raypipe.models.kl import AutoencoderKL
from raypipe.models.quantizer import Quantizer
from raypipe.models.vqgan import VQGAN
from raypipe.models.vqvae import VQVAE


class Network(Protocol):
    """The interface of an autoencoder network.

    encode: frames [b, 3, H, W] -> raw latents [b, channels, h, w], before quantization and scaling. decode: (quantized)
    raw latents -> frames. downsampling: H/h and W/w. arguments: those of the constructor, as stored in checkpoints.
    """

    channels: int
    downsampling: int
    arguments: dict[str, Any]

    @property
    def quantizer(self) -> Quantizer | None: ...
    def encode(self, frames: Tensor) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...


class Reconstruction(NamedTuple):
    """Reconstructed frames [b, 3, H, W], not clamped, and the loss of the quantizer (0 if there is none)."""

    frames: Tensor
    auxiliary_loss: Tensor


NETWORKS: Mapping[str, type[nn.Module]] = {
    "conv": ConvAutoencoder,
    "vqvae": VQVAE,
    "vqgan": VQGAN,
    "kl": AutoencoderKL,
}


INPUT_RANGE = (-1.0, 1.0)
"""Range of frames."""


class Autoencoder(nn.Module):
    """A network and the scale of its latents: latents are the raw latents of `network` divided by `scale` [C].

    input_range: range of the frames that the network itself takes and returns. Frames are always in [-1, 1] outside
    of it; an imported network may have been trained on frames in [0, 1].
    """

    scale: Tensor

    def __init__(self, network: nn.Module, input_range: tuple[float, float] = INPUT_RANGE) -> None:
        super().__init__()
        self.network = network
        self.input_range = input_range
        self.register_buffer("scale", torch.ones(self.latent_channels))

    @property
    def _net(self) -> Network:
        return cast(Network, self.network)

    @property
    def latent_channels(self) -> int:
        """Number of latent channels, C."""
        return self._net.channels

    @property
    def downsampling(self) -> int:
        """Downsampling factor, H/h and W/w."""
        return self._net.downsampling

    @property
    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the network: `build_network(*architecture)` creates the same architecture."""
        name = next(name for name, cls in NETWORKS.items() if isinstance(self.network, cls))
        return name, self._net.arguments

    def encode_raw(self, frames: Tensor) -> Tensor:
        """Frames [b, 3, H, W] in [-1, 1] -> raw latents [b, C, h, w], before quantization and scaling.

        Raises UserError unless H and W are multiples of `downsampling`.
        """
        factor = self.downsampling
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[2] % factor or frames.shape[3] % factor:
            raise UserError(
                f"frames: must be [b, 3, H, W] with H and W multiples of {factor}, not {list(frames.shape)}"
            )
        return self._net.encode(self._to_input(frames))

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [b, 3, H, W] in [-1, 1] -> latents [b, C, h, w], before quantization; raises as `encode_raw`."""
        return self.encode_raw(frames) / self.scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [b, C, h, w], as from `encode` -> frames [b, 3, H, W], clamped to [-1, 1].

        The latents are quantized if the network has a quantizer. Raises UserError for any other shape.
        """
        if latents.ndim != 4 or latents.shape[1] != self.latent_channels:
            raise UserError(f"latents: must be [b, {self.latent_channels}, h, w], not {list(latents.shape)}")
        raw = latents * self.scale[:, None, None]
        quantizer = self._net.quantizer
        decoded = self._net.decode(raw if quantizer is None else quantizer(raw).latents)
        return self._from_input(decoded).clamp(-1, 1)

    def reconstruct(self, frames: Tensor) -> Reconstruction:
        """Encode, quantize and decode frames [b, 3, H, W] in training; the quantizer's gradient is straight-through."""
        raw = self.encode_raw(frames)
        quantizer = self._net.quantizer
        if quantizer is None:
            return Reconstruction(self._from_input(self._net.decode(raw)), raw.new_zeros(()))
        quantized = quantizer(raw)
        return Reconstruction(self._from_input(self._net.decode(quantized.latents)), quantized.loss)

    def _to_input(self, frames: Tensor) -> Tensor:
        """Frames in [-1, 1] -> frames in `input_range`."""
        low, high = self.input_range
        return frames if self.input_range == INPUT_RANGE else low + (frames + 1) * ((high - low) / 2)

    def _from_input(self, frames: Tensor) -> Tensor:
        """Frames in `input_range` -> frames in [-1, 1]."""
        low, high = self.input_range
        return frames if self.input_range == INPUT_RANGE else (frames - low) * (2 / (high - low)) - 1

    def forward(self, frames: Tensor) -> Reconstruction:
        """Same as `reconstruct`, since DistributedDataParallel calls `forward`."""
        return self.reconstruct(frames)


def build_network(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Create the network `name` of NETWORKS with new weights. Raises UserError for an unknown name or argument."""
    if name not in NETWORKS:
        raise UserError(f"autoencoder network: must be one of {', '.join(NETWORKS)}, not {name!r}")
    try:
        return NETWORKS[name](**arguments)
    except TypeError as error:
        raise UserError(f"autoencoder network {name}: {error}") from None


def build_autoencoder(settings: config.Autoencoder) -> Autoencoder:
    """Create an autoencoder. Its weights are drawn from torch's global generator, so call torch.manual_seed first."""
    arguments = {
        "conv": {"channels": settings.channels, "width": settings.width},
        "vqvae": {"channels": settings.channels, "num_embeddings": settings.num_embeddings},
    }
    return Autoencoder(build_network(settings.type, arguments[settings.type]))


@torch.no_grad()
def measure_scale(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> Tensor:
    """Standard deviation, per channel [C], of the raw latents of batches of frames [b, 3, H, W].

    The statistics of batches are merged as in Chan et al. (1979), in float64, which is accurate for channels whose mean
    is far from 0. Raises UserError if there are no frames, or if a channel is constant or not finite.
    """
    count = 0
    mean = squares = torch.zeros(autoencoder.latent_channels, dtype=torch.float64)
    training = autoencoder.training
    autoencoder.eval()
    try:
        for frames in batches:
            raw = rearrange(autoencoder.encode_raw(frames), "b c h w -> c (b h w)").double().cpu()
            size = raw.shape[1]
            difference = raw.mean(dim=1) - mean
            between = difference.square() * (count * size / (count + size))
            squares = squares + raw.var(dim=1, correction=0) * size + between
            mean = mean + difference * (size / (count + size))
            count += size
    finally:
        autoencoder.train(training)
    if count == 0:
        raise UserError("latent scale: no frames to measure it on; the training split is empty")
    scale = (squares / count).sqrt()
    bad = [i for i, value in enumerate(scale.tolist()) if not 1e-12 < value < float("inf")]
    if bad:
        raise UserError(
            f"latent scale: channels {bad} of the autoencoder are constant or not finite on the training frames; "
            "train it longer or at a lower autoencoder.learning_rate"
        )
    return scale.to(autoencoder.scale)
