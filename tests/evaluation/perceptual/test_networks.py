"""The networks against others of torch's own parts with the same weights, and the names of the published files."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from raypipe.evaluation.perceptual import vjepa
from raypipe.evaluation.perceptual.efflite0 import EffLite0, clip_features, distance, load_efflite0, weights_file
from raypipe.evaluation.perceptual.i3d import I3D
from raypipe.evaluation.perceptual.lpips import Lpips


def noise(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def test_the_weights_of_the_package_are_those_of_the_first_blocks():
    tensors = torch.load(weights_file(), weights_only=True)
    mine = EffLite0().state_dict()
    rest = {name.split(".")[1] for name in tensors.keys() - mine.keys() if name.startswith("_blocks.")}
    assert mine.keys() <= tensors.keys() and rest == {"11", "12", "13", "14", "15"}
    assert all(mine[name].shape == tensors[name].shape for name in mine)


@torch.no_grad()
def test_layers_of_efflite0_have_halved_sizes_and_its_distances_are_of_their_directions():
    network = load_efflite0(weights_file())
    x, y = noise(3, 3, 48, 32), noise(3, 3, 48, 32, seed=1)
    made, true = network(x), network(y)
    assert [tuple(layer.shape[1:]) for layer in made] == [(16, 24, 16), (24, 12, 8), (40, 6, 4), (112, 3, 2)]
    assert distance(made, made).abs().max() == 0
    cosines = [functional.cosine_similarity(a, b).mean((1, 2)) for a, b in zip(made, true, strict=True)]
    torch.testing.assert_close(distance(made, true), torch.stack([2 - 2 * c for c in cosines]).mean(0))
    still = network(x[:1].expand(3, -1, -1, -1))
    pooled = made[-1].mean((2, 3))
    moved = 3 * ((pooled[1] - pooled[0]).abs() + (pooled[2] - pooled[1]).abs()) / 2
    torch.testing.assert_close(clip_features(made), torch.cat([pooled.mean(0), moved]))
    assert clip_features(still)[112:].abs().max() < 1e-5


def test_the_names_of_i3d_are_those_of_the_published_state_dict():
    names = I3D().state_dict()
    assert len(names) == 57 * 6 + 2  # a kernel and five tensors of the batch norm each, and the last layer
    assert names["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert names["Mixed_4f.b1b.conv3d.weight"].shape == (320, 160, 3, 3, 3)
    assert names["Mixed_5c.b2b.bn.running_var"].shape == (128,)
    assert names["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1) and "logits.conv3d.bias" in names


@torch.no_grad()
def test_lpips_is_that_of_alexnet():
    """The reference has AlexNet's layers in one sequence, as torchvision has them."""
    torch.manual_seed(0)
    mine = Lpips()
    alexnet = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip
    shift, scale = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])
    fitted = [torch.rand(channels) for channels in (64, 192, 384, 256, 256)]
    state = {"scaling_layer.shift": shift.view(1, 3, 1, 1), "scaling_layer.scale": scale.view(1, 3, 1, 1)}
    state |= {f"lin{i}.model.1.weight": weights.view(1, -1, 1, 1) for i, weights in enumerate(fitted)}
    for slice_, layer in enumerate((0, 3, 6, 8, 10), 1):
        state |= {f"net.slice{slice_}.{layer}.{name}": t for name, t in alexnet[layer].state_dict().items()}
    mine.load_state_dict(state)
    x, y = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1)
    expected = torch.zeros(2)
    a, b = ((t - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for t in (x, y))
    for number, layer in enumerate(alexnet):
        a, b = layer(a), layer(b)
        if number in (1, 4, 7, 9, 11):
            gap = (functional.normalize(a, dim=1) - functional.normalize(b, dim=1)) ** 2
            expected += torch.einsum("c,nchw->n", fitted[(1, 4, 7, 9, 11).index(number)], gap) / gap[0, 0].numel()
    torch.testing.assert_close(mine(x, y), expected, rtol=1e-4, atol=1e-6)
    assert mine(x, x).abs().max() == 0


@torch.no_grad()
def test_vjepa_is_a_transformer_of_torch_and_one_query():
    torch.manual_seed(0)
    width, mine = 32, vjepa.VJepa(32, 2).eval()
    nn.init.normal_(mine.encoder.pos_embed)
    nn.init.normal_(mine.pooler.query_tokens)
    clips = noise(1, 3, 16, vjepa.SIZE, vjepa.SIZE)
    x = mine.encoder.patch_embed["proj"](clips).flatten(2).mT + mine.encoder.pos_embed
    for block in mine.encoder.blocks:
        layer = nn.TransformerEncoderLayer(width, 16, 4 * width, 0, "gelu", 1e-6, batch_first=True, norm_first=True)
        names = {"attn.qkv.weight": "self_attn.in_proj_weight", "attn.qkv.bias": "self_attn.in_proj_bias"}
        renamed = {names.get(name, name): tensor for name, tensor in block.state_dict().items()}
        for old, new in (("attn.proj", "self_attn.out_proj"), ("mlp.fc1", "linear1"), ("mlp.fc2", "linear2")):
            renamed = {name.replace(old, new): tensor for name, tensor in renamed.items()}
        layer.load_state_dict(renamed)
        x = layer.train()(x)  # not the fast path; there is no dropout
    x = functional.layer_norm(x, (width,), eps=1e-6)
    block = mine.pooler.cross_attention_block
    attention = nn.MultiheadAttention(width, 16, batch_first=True)
    cross = block.xattn
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([cross.q.weight, cross.kv.weight]),
            "in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
            "out_proj.weight": cross.proj.weight,
            "out_proj.bias": cross.proj.bias,
        }
    )
    query = mine.pooler.query_tokens
    keys = functional.layer_norm(x, (width,))
    query = query + attention(query, keys, keys)[0]
    expected = query + block.mlp(functional.layer_norm(query, (width,)))
    torch.testing.assert_close(mine(clips), expected[:, 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("frames", [12, 16])
@torch.no_grad()
def test_vjepa_takes_clips_of_other_lengths(frames):
    assert vjepa.VJepa(32, 1)(noise(1, 3, frames, vjepa.SIZE, vjepa.SIZE)).shape == (1, 32)
