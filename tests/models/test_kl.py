"""The KL autoencoder: diffusers' names and sizes, and the answers of the latent-diffusion network that it is.

The VQGANs' networks are checked against published answers; without attention beside the middle, theirs is the
same network under other names, so that one checks the other.
"""

import re

import pytest
import torch
from torch import Tensor

from raypipe.models.autoencoder import Autoencoder
from raypipe.models.kl import AutoencoderKL
from raypipe.models.vqgan import Decoder, Encoder

WIDTHS = (32, 64, 64)


def published_shapes() -> dict[str, list[int]]:
    """sd-vae-ft-mse by hand: block_out_channels 128, 256, 512, 512, two layers a block, four latent channels."""
    shapes: dict[str, list[int]] = {}

    def conv(name: str, inputs: int, outputs: int, size: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [outputs, inputs, size, size], [outputs]

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = [channels]

    def resnet(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.conv_shortcut", inputs, outputs, 1)

    def middle(name: str) -> None:
        resnet(f"{name}.resnets.0", 512, 512)
        resnet(f"{name}.resnets.1", 512, 512)
        norm(f"{name}.attentions.0.group_norm", 512)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes[f"{name}.attentions.0.{part}.weight"] = [512, 512]
            shapes[f"{name}.attentions.0.{part}.bias"] = [512]

    conv("encoder.conv_in", 3, 128)
    for level, (inputs, outputs) in enumerate([(128, 128), (128, 256), (256, 512), (512, 512)]):
        resnet(f"encoder.down_blocks.{level}.resnets.0", inputs, outputs)
        resnet(f"encoder.down_blocks.{level}.resnets.1", outputs, outputs)
        if level < 3:
            conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", outputs, outputs)
    middle("encoder.mid_block")
    norm("encoder.conv_norm_out", 512)
    conv("encoder.conv_out", 512, 8)
    conv("quant_conv", 8, 8, 1)
    conv("post_quant_conv", 4, 4, 1)
    conv("decoder.conv_in", 4, 512)
    middle("decoder.mid_block")
    for level, (inputs, outputs) in enumerate([(512, 512), (512, 512), (512, 256), (256, 128)]):
        for i in range(3):
            resnet(f"decoder.up_blocks.{level}.resnets.{i}", outputs if i else inputs, outputs)
        if level < 3:
            conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", outputs, outputs)
    norm("decoder.conv_norm_out", 128)
    conv("decoder.conv_out", 128, 3)
    return shapes


def test_names_and_sizes_are_those_of_sd_vae_ft_mse() -> None:
    with torch.device("meta"):
        network = AutoencoderKL()
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == published_shapes()
    assert sum(p.numel() for p in network.parameters()) == 83_653_863


def latent_diffusion_state(half: str, network: AutoencoderKL) -> dict[str, Tensor]:
    """One half's weights under the names of latent diffusion."""
    top, state = len(WIDTHS) - 1, {}
    for name, tensor in network.state_dict().items():
        if not name.startswith(f"{half}."):
            continue
        name = (
            name.removeprefix(f"{half}.").replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        )
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        name = re.sub(r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1.", name)
        name = name.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{top - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{top - int(m[1])}.upsample", name)
        state[name] = tensor[:, :, None, None] if ".attn_1." in name and tensor.ndim == 2 else tensor
    return state


@torch.no_grad()
def test_answers_are_those_of_latent_diffusion() -> None:
    torch.manual_seed(0)
    network = AutoencoderKL(3, WIDTHS, 1)
    encoder, decoder = Encoder(WIDTHS, 6, 1, ()), Decoder(WIDTHS, 3, 1, ())
    encoder.load_state_dict(latent_diffusion_state("encoder", network))
    decoder.load_state_dict(latent_diffusion_state("decoder", network))
    frames = torch.rand(2, 3, 16, 24) * 2 - 1
    mean = network.quant_conv(encoder(frames))[:, :3]
    torch.testing.assert_close(network.encode(frames), mean)
    torch.testing.assert_close(network.decode(mean), decoder(network.post_quant_conv(mean)))


@torch.no_grad()
def test_it_is_an_autoencoder_like_the_others() -> None:
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderKL(4, WIDTHS, 1)).eval()
    assert (autoencoder.latent_channels, autoencoder.downsampling) == (4, 4)
    frames = torch.rand(1, 3, 16, 16) * 2 - 1
    latents = autoencoder.encode(frames)
    assert latents.shape == (1, 4, 4, 4)
    assert torch.equal(latents, autoencoder.encode(frames))  # the mean, not a draw
    assert autoencoder.decode(latents).shape == frames.shape
    with pytest.raises(ValueError, match="multiples of 4"):
        autoencoder.encode(torch.zeros(1, 3, 18, 16))
