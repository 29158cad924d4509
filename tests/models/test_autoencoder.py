from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from raypipe import config
from raypipe.models.autoencoder import NETWORKS, Autoencoder, build_autoencoder, build_network, measure_scale
from raypipe.models.conv import ConvAutoencoder
from raypipe.models.quantizer import Quantizer

ARGUMENTS = {
    "conv": {"channels": 4, "width": 16},
    "vqvae": {"channels": 4, "num_embeddings": 16},
    "vqgan": {
        "channels": 3,
        "z_channels": 5,
        "num_embeddings": 16,
        "ch": 32,
        "ch_mult": [1, 2],
        "attention_levels": [1],
    },
    "kl": {"channels": 3, "widths": [16, 32], "num_res_blocks": 1, "groups": 8},
}
EACH = pytest.mark.parametrize("name", list(NETWORKS))


def build(name: str) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(build_network(name, ARGUMENTS[name]))


def frames(size: int = 16, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, size, 2 * size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@EACH
def test_shapes_range_and_round_trip_of_the_scale(name: str) -> None:
    autoencoder = build(name).eval()
    x = frames()
    factor = autoencoder.downsampling
    raw = autoencoder.encode(x)
    assert raw.shape == (2, autoencoder.latent_channels, 16 // factor, 32 // factor)
    decoded = autoencoder.decode(raw * 100)
    assert decoded.shape == x.shape
    assert decoded.abs().max() <= 1
    decoded = autoencoder.decode(raw)
    autoencoder.scale.copy_(torch.arange(1, autoencoder.latent_channels + 1))
    torch.testing.assert_close(autoencoder.encode(x) * autoencoder.scale[:, None, None], raw)
    torch.testing.assert_close(autoencoder.decode(autoencoder.encode(x)), decoded, rtol=1e-4, atol=1e-5)
    assert build_network(*autoencoder.architecture).state_dict().keys() == autoencoder.network.state_dict().keys()


@EACH
def test_gradients_reach_every_parameter(name: str) -> None:
    autoencoder = build(name)
    for parameter in autoencoder.parameters():  # a zero-initialised layer passes no gradient on
        nn.init.normal_(parameter, std=0.1)
    x = frames()
    reconstruction = autoencoder(x)
    assert reconstruction.frames.shape == x.shape
    assert reconstruction.auxiliary_loss.shape == ()
    assert (reconstruction.auxiliary_loss > 0) == (name in ("vqvae", "vqgan"))
    ((reconstruction.frames - x).square().mean() + reconstruction.auxiliary_loss).backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_conv_is_as_small_as_the_recipe_says_and_learns() -> None:
    autoencoder = build_autoencoder(config.Autoencoder())
    assert sum(parameter.numel() for parameter in autoencoder.parameters()) == 256_980
    torch.manual_seed(0)
    small = Autoencoder(ConvAutoencoder(4, 16))
    optimizer = torch.optim.AdamW(small.parameters(), lr=5e-3)
    coarse = torch.rand(4, 3, 4, 4) * 2 - 1
    x = nn.functional.interpolate(coarse, scale_factor=8.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (small(x).frames - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_settings_choose_the_network() -> None:
    vqvae = build_autoencoder(config.Autoencoder(type="vqvae", num_embeddings=32))
    assert vqvae.architecture == ("vqvae", {"num_embeddings": 32, "channels": 4})
    with pytest.raises(ValueError, match="must be one of conv, vqvae, vqgan, kl, not 'vae'"):
        build_network("vae", {})
    with pytest.raises(ValueError, match=r"autoencoder network conv: .*depth"):
        build_network("conv", {"depth": 3})


def test_quantizer_takes_the_nearest_code_and_passes_gradients_straight_through() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(10, 3)
    nn.init.normal_(quantizer.embedding.weight)
    z = torch.randn(2, 3, 40, 60, requires_grad=True)  # more than one chunk
    quantized, loss = quantizer(z)
    vectors = z.detach().movedim(1, -1).reshape(-1, 3)
    codes = quantizer.embedding.weight.detach()
    nearest = codes[torch.cdist(vectors, codes).argmin(dim=1)].view(2, 40, 60, 3).movedim(-1, 1)
    torch.testing.assert_close(quantized, nearest)
    torch.testing.assert_close(loss, 1.25 * (nearest - z).square().mean())
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((quantized * weights).sum(), z)
    torch.testing.assert_close(gradient, weights)
    (pulled,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(pulled, 2 * (z - nearest).detach() / z.numel())


def test_measured_scale_is_the_deviation_about_the_mean_in_any_batches() -> None:
    autoencoder = build("conv")
    with torch.no_grad():
        autoencoder.network.encoder[-1].bias.add_(1000.0)  # far from 0
        autoencoder.scale.fill_(7.0)  # plays no part
    x = frames(batch=6)
    with torch.no_grad():
        expected = autoencoder.encode_raw(x).double().transpose(0, 1).flatten(1).std(dim=1, correction=0).float()
    for sizes in ([6], [1, 5], [2, 2, 2]):
        scale = measure_scale(autoencoder, x.split(sizes))
        torch.testing.assert_close(scale, expected, rtol=1e-4, atol=0)
    assert autoencoder.training
    autoencoder.scale.copy_(scale)
    torch.testing.assert_close(
        autoencoder.encode(x).transpose(0, 1).flatten(1).std(dim=1, correction=0), torch.ones(4), rtol=1e-3, atol=0
    )


def test_scale_of_useless_latents_is_refused() -> None:
    autoencoder = build("conv")

    def none() -> Iterator[Tensor]:
        yield from ()

    with pytest.raises(ValueError, match="no frames to measure it on"):
        measure_scale(autoencoder, none())
    with torch.no_grad():
        autoencoder.network.encoder[-1].weight[1] = 0
        autoencoder.network.encoder[-1].weight[2] = float("nan")
    with pytest.raises(ValueError, match=r"channels \[1, 2\] .* constant or not finite"):
        measure_scale(autoencoder, [frames()])


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 4, 16, 16), (1, 3, 12, 16), (1, 3, 16, 9)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames: must be \[b, 3, H, W\] with H and W multiples of 8, not "):
        build("conv").encode(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"latents: must be \[b, 4, h, w\], not "):
        build("conv").decode(torch.zeros(1, 3, 2, 2))
